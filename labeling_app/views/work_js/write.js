// The page where an ideal answer is written.

class WritePage extends WorkPage {
  constructor(component) {
    super(component);
    this.turns = this.initialTurns();
    this.shown = this.data.shown || [];
    this.build();
  }

  initialTurns() {
    const body = this.saver.body;
    if (body && Array.isArray(body.turns) && body.turns.length) return body.turns.map((turn) => ({ ...turn }));
    const answer = { role: "assistant", text: body && typeof body.text === "string" ? body.text : "" };
    return this.data.kind === "question" ? [{ role: "user", text: "" }, answer] : [answer];
  }

  body() {
    return { turns: this.turns, active_ms: Math.round(this.time.ms), pasted_chars: this.pasted };
  }

  payload() {
    return { turns: this.turns };
  }

  ready() {
    const empty = this.turns.find((turn) => !turn.text.trim());
    if (empty) {
      this.problem.textContent = empty.role === "user" ? "The question is empty; write something." : "The answer is empty; write something.";
      this.areas[this.turns.indexOf(empty)].focus();
      return false;
    }
    return true;
  }

  build() {
    const { data } = this;
    this.count = el("span", { class: "count" });
    this.answers = el("div", { class: "turns" });
    this.submitButton = button("Submit", "Ctrl+Enter", () => this.submit(), { class: "primary" });
    const more = el("span", { class: "tools" },
      button("Add a turn", "Alt+T", () => this.addTurn()),
      this.removeButton = button("Remove the last turn", "Alt+R", () => this.removeTurn()));
    this.root.append(this.header(), el("div", { class: "columns" },
      el("div", { class: "task" },
        promptBox(data),
        data.bad ? el("section", {}, el("h2", {}, "A user marked this as bad: write better"),
          el("div", { class: "box bad-answer", tabindex: "0", role: "region", "aria-label": "The bad answer" }, el("div", { class: "text" }, data.bad))) : null,
        this.answers,
        this.problem,
        el("footer", {}, this.submitButton, this.count, more)),
      el("aside", {}, guide(data, "write", "open"), this.assistPanel())));
    this.drawTurns();
    this.areas[this.areas.length - 1].focus({ preventScroll: true });
  }

  drawTurns() {
    const first = this.data.kind === "question" ? "question" : "answer";
    this.areas = this.turns.map((turn, place) => {
      const name = turn.role === "user" ? (place === 0 && first === "question" ? "Your question" : "The person's next message") : (this.turns.length > 2 ? `Your answer ${Math.ceil((place + 1) / 2)}` : "Your answer");
      const area = el("textarea", {
        "aria-label": name, dir: "auto", spellcheck: "true",
        placeholder: turn.role === "user" ? "Write the question." : "Write the answer that you would be glad to receive.",
        oninput: () => { turn.text = area.value; this.counted(); this.changed(); },
        onpaste: (event) => { this.pasted += (event.clipboardData || { getData: () => "" }).getData("text").length; },
        onfocus: () => { if (turn.role === "assistant") this.last = area; },
      });
      area.value = turn.text;
      area.dataset.name = name;
      return area;
    });
    this.answers.replaceChildren(...this.areas.flatMap((area) => [el("h2", {}, area.dataset.name), area]));
    this.answers.classList.toggle("single", this.areas.length === 1);
    this.last = this.areas[this.areas.length - 1];
    this.removeButton.hidden = this.turns.length < 3;
    this.counted();
  }

  counted() {
    const words = this.turns.map((turn) => turn.text).join(" ").split(/\s+/u).filter(Boolean).length;
    this.count.textContent = `${words.toLocaleString("en")} ${words === 1 ? "word" : "words"}`;
  }

  addTurn() {
    this.turns.push({ role: "user", text: "" }, { role: "assistant", text: "" });
    this.drawTurns();
    this.changed();
    this.areas[this.areas.length - 2].focus();
  }

  removeTurn() {
    if (this.turns.length < 3) return;
    const gone = this.turns.splice(-2);
    this.drawTurns();
    this.changed();
    if (gone.some((turn) => turn.text.trim())) {
      this.problem.replaceChildren("A turn was removed. ", el("button", { type: "button", onclick: () => {
        this.turns.push(...gone);
        this.problem.textContent = "";
        this.drawTurns();
        this.changed();
      } }, "Bring it back"));
    }
  }

  /** Put text where the person writes, so that the browser's own undo takes it back. */
  insert(text) {
    const area = this.last;
    area.focus();
    const before = area.value.slice(0, area.selectionStart);
    const glue = before && !before.endsWith("\n\n") ? (before.endsWith("\n") ? "\n" : "\n\n") : "";
    if (!document.execCommand("insertText", false, glue + text)) {
      area.setRangeText(glue + text, area.selectionStart, area.selectionEnd, "end");
      area.dispatchEvent(new Event("input"));
    }
  }

  assistPanel() {
    const { data } = this;
    this.assists = el("div", { class: "assists" });
    if (!data.assisted) {
      return el("section", { class: "help" }, el("h2", {}, "Help"),
        el("p", { class: "quiet" }, data.abilities.length ? "This task is done without help." : "No model here can draft or criticise yet."));
    }
    this.waiting = el("p", { class: "quiet", role: "status" });
    const can = (ability) => data.abilities.includes(ability);
    this.drawAssists();
    return el("section", { class: "help" }, el("h2", {}, "Help"),
      data.abilities.length ? null : el("p", { class: "quiet" }, "No model here can draft or criticise yet."),
      el("div", { class: "tools" },
        can("draft") ? this.draftButton = button("Drafts", "Alt+D", () => this.ask("draft")) : null,
        can("critique") ? this.critiqueButton = button("Check my answer", "Alt+C", () => this.ask("critique")) : null),
      this.waiting, this.assists);
  }

  async ask(kind) {
    if (this.asking || !this.data.assisted || !this.data.abilities.includes(kind)) return;
    const text = this.turns[this.turns.length - 1].text;
    if (kind === "critique" && !text.trim()) {
      this.waiting.textContent = "Write something first; then it can be checked.";
      return;
    }
    this.asking = true;
    this.waiting.textContent = kind === "draft" ? "Asking for drafts; write on meanwhile." : "Reading your answer; write on meanwhile.";
    const reply = await post(this.data, "/api/page/assist", { token: this.data.token, kind, text }, { timeoutMs: 120000 });
    this.asking = false;
    if (!reply.ok) {
      this.waiting.textContent = `No help now: ${reply.error}. Your text is not touched.`;
      return;
    }
    const failed = reply.shown.filter((each) => each.error);
    this.waiting.textContent = failed.length ? `No help from ${failed.length} of ${reply.shown.length}: ${failed[0].error}.` : "";
    if (kind === "critique" && !failed.length && reply.shown.every((each) => !each.parts.length)) {
      this.waiting.textContent = "Nothing found that breaks a clause. That is a model's word: read it once more yourself.";
    }
    this.shown = [...this.shown, ...reply.shown.filter((each) => !each.error)];
    this.drawAssists();
  }

  async act(assist, part, action, node) {
    node.classList.add(`did-${action}`);
    const reply = await this.send("/api/page/assist-action", { id: assist.id, part, action });
    if (!reply.ok) this.waiting.textContent = `Not recorded: ${reply.error}.`;
  }

  drawAssists() {
    let letter = 64;
    let number = 0;
    const nodes = this.shown.flatMap((assist) => assist.kind === "draft"
      ? [el("h3", {}, `Draft ${String.fromCharCode(++letter)}`), ...assist.parts.map((part, place) => this.draftPart(assist, part, place, ++number))]
      : [el("h3", {}, "Check"), ...assist.parts.map((part, place) => this.finding(assist, part, place))]);
    this.assists.replaceChildren(...nodes);
  }

  draftPart(assist, part, place, number) {
    const key = number < 10 ? `Alt+${number}` : "";
    const take = () => { this.insert(part.text); this.act(assist, place, "take", node); };
    const node = el("div", { class: "part" }, el("div", { class: "text" }, part.text),
      key ? button("take", key, take) : el("button", { type: "button", onclick: take }, "take"));
    if (key) node.dataset.number = number;
    node.take = take;
    return node;
  }

  finding(assist, part, place) {
    const node = el("div", { class: "part finding" },
      el("p", {}, el("a", { href: "#", onclick: (event) => { event.preventDefault(); this.showClause(part.clause); } }, `Clause ${part.clause}`),
        part.quote ? el("q", {}, part.quote) : null),
      el("p", {}, part.text),
      el("span", { class: "tools" },
        el("button", { type: "button", onclick: () => this.act(assist, place, "accept", node) }, "accept"),
        el("button", { type: "button", onclick: () => this.act(assist, place, "reject", node) }, "reject")));
    return node;
  }

  showClause(number) {
    const details = this.root.querySelector("details.guide");
    details.open = true;
    const clause = details.querySelector(`[id="clause-${CSS.escape(number)}"]`);
    if (clause) clause.focus();
  }

  more(event, does) {
    if (!event.altKey) return;
    if (event.code === "KeyD") does(() => this.ask("draft"));
    else if (event.code === "KeyC") does(() => this.ask("critique"));
    else if (event.code === "KeyT") does(() => this.addTurn());
    else if (event.code === "KeyR") does(() => this.removeTurn());
    else if (/^Digit[1-9]$/.test(event.code)) {
      const node = this.root.querySelector(`.part[data-number="${event.code.slice(5)}"]`);
      if (node) does(() => node.take());
    }
  }

  keys() {
    return [...COMMON_KEYS, ["Alt+D", "drafts to start from, where a model can"], ["Alt+1 … 9", "take a part of a draft where you write"],
      ["Alt+C", "check my answer against the instructions"], ["Alt+T", "add a turn"], ["Alt+R", "remove the last turn"]];
  }
}

export default mount(WritePage);
