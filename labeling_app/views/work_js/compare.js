// The page where answers are ranked: 1 is best, equal ranks tie.

class ComparePage extends WorkPage {
  constructor(component) {
    super(component);
    const num = this.data.answers.length;
    const body = this.saver.body || {};
    const list = (key, empty) => Array.from({ length: num }, (_, place) => (body[key] && body[key][place] !== undefined ? body[key][place] : empty()));
    this.verdict = {
      ranks: list("ranks", () => null),
      likert: list("likert", () => null),
      flags: list("flags", () => []),
      confidence: body.confidence || null,
      degree: body.degree || null,
      comment: body.comment || "",
      not_rankable: body.not_rankable || "",
    };
    this.past = [];
    this.build();
  }

  body() {
    return { ...this.verdict, active_ms: Math.round(this.time.ms), pasted_chars: this.pasted };
  }

  payload() {
    return { verdict: this.verdict };
  }

  letter(place) {
    return String.fromCharCode(65 + place);
  }

  ready() {
    const missing = this.verdict.ranks.findIndex((rank) => rank === null);
    if (!this.verdict.not_rankable && missing >= 0) {
      this.problem.textContent = `${this.letter(missing)} has no rank yet.`;
      this.focus(missing);
      return false;
    }
    return true;
  }

  build() {
    const { data } = this;
    const num = data.answers.length;
    this.words = el("p", { class: "words", role: "status" });
    this.cards = data.answers.map((answer, place) => this.card(answer, place));
    this.submitButton = button("Submit", "Ctrl+Enter", () => this.submit(), { class: "primary" });
    this.sure = this.choice("How sure?", "confidence", data.confidences, "confidence");
    this.much = num === 2 ? this.choice("How much better?", "degree", data.degrees, "degree") : null;
    this.unable = el("label", { class: "choice" }, this.unableBox = el("input", { type: "checkbox", onchange: () => this.setUnable(this.unableBox.checked) }), " Cannot be ranked ", el("kbd", {}, "Alt+N"));
    this.why = el("select", { "aria-label": "Why it cannot be ranked", onchange: () => this.change({ not_rankable: this.why.value }) },
      data.unrankable_reasons.map((reason) => el("option", {}, reason)));
    this.comment = el("input", { type: "text", maxlength: "2000", "aria-label": "Comment", placeholder: "Comment, if you like", oninput: () => { this.verdict.comment = this.comment.value; this.changed(); } });
    this.comment.value = this.verdict.comment;
    const help = data.assisted && data.abilities.includes("rank-check");
    this.checks = el("div", { class: "assists", role: "status" });
    const foot = el("footer", { class: "verdict" },
      el("div", {}, this.words, this.problem, el("div", { class: "tools" }, this.submitButton,
        button("Undo change", "U", () => this.back()), this.unable, this.why,
        help ? button("Check", "Alt+C", () => this.check()) : null)),
      el("div", { class: "tools end" }, this.much, this.sure, this.comment));
    const beside = num <= 4;
    const cards = el("div", { class: beside ? "cards beside" : "cards stacked", style: beside ? `--num: ${num}` : null }, this.cards);
    this.root.classList.toggle("stack", !beside);
    const guideFold = guide(data, "compare", "folded");
    guideFold.classList.add("floating");
    this.root.append(this.header(), el("div", { class: "top" }, promptBox(data), guideFold), cards, this.checks, foot);
    this.draw();
    this.focus(Math.max(0, this.verdict.ranks.findIndex((rank) => rank === null)));
  }

  card(answer, place) {
    const num = this.data.answers.length;
    const letter = this.letter(place);
    const scale = (what, most, name, set) => el("div", { class: "scale", role: "radiogroup", "aria-label": `${name} of ${letter}` },
      el("span", { class: "name" }, name),
      Array.from({ length: most }, (_, at) => el("button", {
        type: "button", role: "radio", "aria-checked": "false", tabindex: "-1", "data-value": at + 1, class: what,
        onclick: () => set(at + 1),
      }, String(at + 1))));
    const boxes = el("details", { class: "boxes" }, el("summary", {}, "Boxes that fit ", el("span", { class: "ticked" })),
      this.data.flags.map((flag) => el("label", { class: "choice" }, el("input", {
        type: "checkbox", value: flag, onchange: (event) => this.setFlag(place, flag, event.target.checked),
      }), " ", flag)));
    return el("section", { class: "card", tabindex: "0", "aria-label": `Answer ${letter}`, "data-place": place },
      el("h2", {}, `Answer ${letter}`),
      el("div", { class: "box answer", tabindex: "0", role: "region", "aria-label": `Text of ${letter}` }, el("div", { class: "text", dir: "auto" }, answer)),
      scale("rank", num, "rank", (value) => this.setRank(place, value)),
      scale("likert", 7, "quality", (value) => this.setLikert(place, value)),
      boxes);
  }

  choice(name, key, values) {
    return el("div", { class: "scale words-scale", role: "radiogroup", "aria-label": name, "data-key": key },
      el("span", { class: "name" }, name),
      values.map((value) => el("button", { type: "button", role: "radio", "aria-checked": "false", "data-value": value,
        onclick: () => this.change({ [key]: this.verdict[key] === value ? null : value }) }, value)));
  }

  /** Every change can be taken back, one by one. */
  change(values) {
    this.past.push(JSON.stringify(this.verdict));
    Object.assign(this.verdict, values);
    if (this.much && new Set(this.verdict.ranks).size < 2) this.verdict.degree = null;
    this.draw();
    this.changed();
  }

  back() {
    if (!this.past.length) return;
    const comment = this.verdict.comment;
    this.verdict = { ...JSON.parse(this.past.pop()), comment };
    this.draw();
    this.changed();
  }

  at(key, place, value) {
    return this.verdict[key].map((old, here) => (here === place ? value : old));
  }

  setRank(place, value) {
    this.change({ ranks: this.at("ranks", place, value), not_rankable: "" });
  }

  setLikert(place, value) {
    this.change({ likert: this.at("likert", place, this.verdict.likert[place] === value ? null : value) });
  }

  setFlag(place, flag, on) {
    const others = this.verdict.flags[place].filter((each) => each !== flag);
    this.change({ flags: this.at("flags", place, on ? [...others, flag] : others) });
  }

  setUnable(on) {
    const none = this.verdict.ranks.map(() => null);
    this.change(on ? { not_rankable: this.why.value, ranks: none, degree: null } : { not_rankable: "" });
  }

  draw() {
    const { verdict } = this;
    const mark = (node, on) => { node.setAttribute("aria-checked", String(on)); };
    this.cards.forEach((card, place) => {
      for (const key of ["rank", "likert"]) {
        const value = key === "rank" ? verdict.ranks[place] : verdict.likert[place];
        const buttons = [...card.querySelectorAll(`button.${key}`)];
        buttons.forEach((each) => { mark(each, Number(each.dataset.value) === value); each.tabIndex = -1; });
        (buttons.find((each) => Number(each.dataset.value) === value) || buttons[0]).tabIndex = 0;
      }
      card.querySelectorAll("input[type=checkbox]").forEach((box) => { box.checked = verdict.flags[place].includes(box.value); });
      const ticked = verdict.flags[place].length;
      card.querySelector(".ticked").textContent = ticked ? `${ticked} ticked` : "";
    });
    this.root.querySelectorAll(".words-scale").forEach((scale) => {
      scale.querySelectorAll("button").forEach((each) => mark(each, each.dataset.value === verdict[scale.dataset.key]));
    });
    for (const [scale, key] of [[this.sure, "confidence"], [this.much, "degree"]]) {
      if (scale) scale.querySelectorAll("button").forEach((each) => mark(each, each.dataset.value === verdict[key]));
    }
    if (this.much) this.much.hidden = new Set(verdict.ranks.filter((rank) => rank !== null)).size < 2;
    this.unableBox.checked = Boolean(verdict.not_rankable);
    this.why.hidden = !verdict.not_rankable;
    if (verdict.not_rankable) this.why.value = verdict.not_rankable;
    this.words.textContent = verdict.not_rankable ? `This set cannot be ranked: ${verdict.not_rankable}.` : this.inWords();
    const missing = !verdict.not_rankable && verdict.ranks.includes(null);
    this.submitButton.setAttribute("aria-disabled", String(missing));
    this.submitButton.classList.toggle("dim", missing);
    if (!missing) this.problem.textContent = "";
  }

  /** "A, then B and C tie, then D. E has no rank yet." */
  inWords() {
    const list = (names) => (names.length === 1 ? names[0] : `${names.slice(0, -1).join(", ")} and ${names[names.length - 1]}`);
    const groups = new Map();
    const missing = [];
    this.verdict.ranks.forEach((rank, place) => {
      if (rank === null) missing.push(this.letter(place));
      else groups.set(rank, [...(groups.get(rank) || []), this.letter(place)]);
    });
    if (!groups.size) return "Rank each answer: 1 is best. Equal ranks are a tie.";
    const said = [...groups.keys()].sort((a, b) => a - b).map((rank) => {
      const names = groups.get(rank);
      return names.length === 1 ? names[0] : `${list(names)} tie`;
    }).join(", then ");
    return missing.length ? `${said}. ${list(missing)} ${missing.length === 1 ? "has" : "have"} no rank yet.` : `${said}.`;
  }

  async check() {
    if (this.asking || !this.data.abilities.includes("rank-check") || !this.data.assisted) return;
    this.asking = true;
    this.checks.replaceChildren(el("p", { class: "quiet" }, "Reading your ranking; go on meanwhile."));
    const reply = await post(this.data, "/api/page/assist", { token: this.data.token, kind: "rank-check", text: this.words.textContent }, { timeoutMs: 120000 });
    this.asking = false;
    if (!reply.ok) {
      this.checks.replaceChildren(el("p", { class: "bad" }, `No help now: ${reply.error}. Your ranking is not touched.`));
      return;
    }
    const found = reply.shown.flatMap((assist) => assist.parts.map((part, place) => {
      const node = el("div", { class: "part finding" }, el("b", {}, `Clause ${part.clause} `), part.quote ? el("q", {}, part.quote) : null, " ", part.text, " ",
        ...["accept", "reject"].map((action) => el("button", { type: "button", onclick: () => {
          node.classList.add(`did-${action}`);
          this.send("/api/page/assist-action", { id: assist.id, part: place, action });
        } }, action)));
      return node;
    }));
    const failed = reply.shown.filter((each) => each.error);
    const note = failed.length ? `No help: ${failed[0].error}.` : "Nothing found that breaks a clause.";
    this.checks.replaceChildren(...(found.length ? found : [el("p", { class: "quiet" }, note)]));
  }

  focus(place) {
    const card = this.cards[Math.min(Math.max(place, 0), this.cards.length - 1)];
    card.focus({ preventScroll: true });
    card.scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  current() {
    const active = this.component.parentElement.activeElement || (this.root.getRootNode().activeElement);
    const card = active && active.closest ? active.closest(".card") : null;
    return card ? Number(card.dataset.place) : -1;
  }

  more(event, does) {
    if (event.altKey && event.code === "KeyN") does(() => this.setUnable(!this.verdict.not_rankable));
    else if (event.altKey && event.code === "KeyC") does(() => this.check());
    if (this.typing(event) || event.ctrlKey || event.metaKey || event.altKey) return;
    const place = this.current();
    if (event.key.toLowerCase() === "u") does(() => this.back());
    else if (event.key === "ArrowRight") does(() => this.focus(place + 1));
    else if (event.key === "ArrowLeft") does(() => this.focus(place - 1));
    else if (place >= 0 && event.shiftKey && /^Digit[1-7]$/.test(event.code)) does(() => this.setLikert(place, Number(event.code.slice(5))));
    else if (place >= 0 && /^[1-9]$/.test(event.key) && Number(event.key) <= this.data.answers.length) does(() => this.setRank(place, Number(event.key)));
    else if (/^[a-i]$/.test(event.key) && event.key.charCodeAt(0) - 97 < this.data.answers.length) does(() => this.focus(event.key.charCodeAt(0) - 97));
  }

  keys() {
    return [["1 … 9", "rank of the answer that has the focus"], ["Shift+1 … 7", "its quality"], ["← →, or A B C …", "move between the answers"],
      ["U", "take the last change back"], ["Alt+N", "cannot be ranked"], ["Alt+C", "check my ranking, where a model can"], ...COMMON_KEYS];
  }
}

export default mount(ComparePage);
