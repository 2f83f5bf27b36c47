// What both work pages share: building nodes from text alone, keeping drafts, asking the server.

const PAGE_HEADER = "X-Flywheel-Page";
const SAVE_AFTER_MS = 500;   // after the last key
const SAVE_WITHIN_MS = 1400; // after the first unsaved one: two seconds are the promise
const RETRY_MS = [500, 1000, 2000, 4000, 5000];
const TRIES = 14;            // about a minute
const GO_ON_MS = 3000;       // a page that does not go on is asked again: its line may have been cut
const IDLE_MS = 30000;       // without a key or a movement nobody is at work

/** A node. Strings become text, never markup: what models and users wrote is shown as it is. */
function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "class") node.className = value;
    else if (value === true) node.setAttribute(name, "");
    else node.setAttribute(name, value);
  }
  for (const child of children.flat()) {
    if (child !== null && child !== undefined && child !== false) node.append(child);
  }
  return node;
}

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** POST to the page's own server. Returns {ok, status, ...reply}; status 0: nobody answered. */
async function post(data, path, body, { keepalive = false, timeoutMs = 20000 } = {}) {
  const stop = new AbortController();
  const timer = setTimeout(() => stop.abort(), timeoutMs);
  try {
    const response = await fetch(path, {
      method: "POST",
      headers: { "Content-Type": "application/json", [PAGE_HEADER]: data.page_token },
      body: JSON.stringify(body),
      signal: stop.signal,
      keepalive,
    });
    const reply = await response.json().catch(() => ({ error: "the server's answer was cut off" }));
    return { ...reply, ok: response.ok, status: response.status };
  } catch {
    return { ok: false, status: 0, error: "the server does not answer" };
  } finally {
    clearTimeout(timer);
  }
}

/** Whether asking again may help: no answer, or a server or database that is away. */
const mayRetry = (reply) => reply.status === 0 || reply.status >= 500;

/** Keeps a draft: at the server within two seconds, and on this computer until it is there. */
class Saver {
  constructor(data, onState) {
    this.data = data;
    this.onState = onState;
    this.place = `flywheel:${data.person}:${data.task_id}`;
    this.rev = data.draft ? data.draft.rev : 0;
    this.saved = this.rev;
    this.body = data.draft ? data.draft.body : null;
    this.busy = false;
    this.closed = false;
    this.tries = 0;
    const mirror = this.mirrored();
    if (mirror && mirror.rev > this.rev) {
      this.rev = mirror.rev;
      this.body = mirror.body;
      this.restored = true;
      this.soon(0);
    }
  }

  mirrored() {
    try {
      return JSON.parse(localStorage.getItem(this.place));
    } catch {
      return null;
    }
  }

  change(body) {
    if (this.closed) return;
    this.body = body;
    this.rev += 1;
    try {
      localStorage.setItem(this.place, JSON.stringify({ rev: this.rev, body }));
    } catch { /* full or forbidden: the server keeps it */ }
    if (!this.since) this.since = Date.now();
    this.onState("typing");
    this.soon(Math.max(0, Math.min(SAVE_AFTER_MS, this.since + SAVE_WITHIN_MS - Date.now())));
  }

  soon(ms) {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.flush(), ms);
  }

  async flush({ keepalive = false } = {}) {
    clearTimeout(this.timer);
    if (this.closed || this.rev === this.saved) return true;
    if (this.ahead) return false;
    if (this.busy && !keepalive) {
      this.again = true;
      return false;
    }
    this.busy = true;
    const rev = this.rev;
    const sent = { token: this.data.token, rev, body: this.body };
    const reply = await post(this.data, "/api/page/draft", sent, { keepalive });
    this.busy = false;
    if (this.closed) return true;
    if (reply.ok && reply.kept === false) { // another window was ahead: its text is not written over
      this.ahead = reply.rev;
      this.onState("elsewhere", () => this.overwrite());
      return false;
    }
    if (reply.ok) {
      this.saved = rev;
      this.tries = 0;
      if (this.rev === rev) {
        this.since = null;
        this.forget();
        this.onState("saved", reply.saved);
      } else {
        this.since = Date.now();
        this.soon(SAVE_AFTER_MS);
      }
      return true;
    }
    this.onState(mayRetry(reply) ? "offline" : "refused", reply.error);
    if (mayRetry(reply)) this.soon(RETRY_MS[Math.min(this.tries++, RETRY_MS.length - 1)]);
    return false;
  }

  /** The person has said that this window's text counts. */
  overwrite() {
    this.rev = Math.max(this.rev, this.ahead) + 1;
    this.ahead = null;
    this.soon(0);
  }

  forget() {
    try {
      localStorage.removeItem(this.place);
    } catch { /* forbidden */ }
  }

  close() {
    this.closed = true;
    clearTimeout(this.timer);
  }
}

/** Milliseconds in which the person was at work on this task. */
class ActiveTime {
  constructor(before = 0) {
    this.ms = before;
    this.last = Date.now();
    this.seen = this.last;
    this.note = () => this.tick(true);
    for (const kind of ["keydown", "pointermove", "pointerdown", "wheel"]) {
      document.addEventListener(kind, this.note, { passive: true, capture: true });
    }
    this.timer = setInterval(() => this.tick(false), 1000);
  }

  tick(active) {
    const now = Date.now();
    if (!document.hidden && now - this.seen < IDLE_MS) this.ms += Math.min(now - this.last, 2000);
    this.last = now;
    if (active) this.seen = now;
    if (this.onTick) this.onTick(this.ms);
  }

  close() {
    clearInterval(this.timer);
    for (const kind of ["keydown", "pointermove", "pointerdown", "wheel"]) {
      document.removeEventListener(kind, this.note, { capture: true });
    }
  }
}

const clock = (ms) => `${Math.floor(ms / 60000)}:${String(Math.floor(ms / 1000) % 60).padStart(2, "0")}`;

/** "saved 12:04:31" in the reader's own time. */
const savedAt = (iso) => `saved ${new Date(iso).toLocaleTimeString("en-GB")}`;

const STATES = {
  typing: () => "…",
  saved: (at) => savedAt(at),
  offline: () => "Offline: typing is kept on this computer; it will be saved when the connection is back.",
  elsewhere: () => "Another window of yours has other text for this task; this one is not saved.",
  refused: (why) => `Not saved: ${why}. Typing is kept on this computer.`,
};

/** The quiet line at the top right: how the draft is. */
class StateLine {
  constructor() {
    this.node = el("span", { class: "state", role: "status" });
  }

  show(kind, detail) {
    if (kind === "typing" && (this.kind === "offline" || this.kind === "elsewhere")) return;
    this.kind = kind;
    this.node.textContent = STATES[kind](detail);
    this.node.classList.toggle("bad", kind === "offline" || kind === "refused" || kind === "elsewhere");
    if (kind !== "elsewhere") return;
    const choose = (label, does) => el("button", { type: "button", onclick: does }, label);
    this.node.append(" ", choose("Keep this one", () => { this.kind = null; detail(); }), " ",
      choose("Take the other", () => { localStorage.removeItem(this.place); location.reload(); }));
  }
}

/** The instructions: headings and numbered clauses, folded or not as the person left them on pages
 * of this kind; `first`: as they are until then. */
function guide(data, kind, first) {
  const blocks = data.instructions.blocks.map((block) => {
    if (block.level) return el(block.level > 2 ? "h4" : "h3", {}, block.text);
    return el("p", { id: block.number ? `clause-${block.number}` : null, tabindex: "-1" },
      block.number ? el("b", {}, `${block.number} `) : null, block.text);
  });
  const place = `flywheel:guide-${kind}`;
  const open = (localStorage.getItem(place) || first) === "open";
  const details = el("details", { class: "guide", open },
    el("summary", {}, `Instructions v${data.instructions.n} `, el("kbd", {}, "Alt+I")),
    el("div", { class: "clauses", tabindex: "0", role: "region", "aria-label": "Labeling instructions" }, blocks));
  details.addEventListener("toggle", () =>
    localStorage.setItem(place, details.open ? "open" : "folded"));
  return details;
}

/** The prompt with its earlier turns. */
function promptBox(data) {
  const turns = data.prompt.map((turn) => el("div", {},
    data.prompt.length > 1 ? el("p", { class: "role" }, turn.role) : null,
    el("div", { class: "text" }, turn.text)));
  return el("section", {},
    el("h2", {}, data.kind === "question" ? "What to write about" : "Prompt"),
    el("div", { class: "box prompt", tabindex: "0", role: "region", "aria-label": "Prompt" }, turns));
}

function button(label, key, onclick, more = {}) {
  return el("button", { type: "button", onclick, "aria-keyshortcuts": key.replaceAll("Ctrl", "Control"), ...more },
    label, " ", el("kbd", { "aria-hidden": "true" }, key));
}

/** A dialog that takes the focus and gives it back. */
function dialog(root, title, body, actions) {
  const box = el("dialog", { "aria-label": title },
    el("h2", {}, title), body,
    el("p", { class: "actions" }, actions,
      el("button", { type: "button", onclick: () => box.close() }, "Close ", el("kbd", {}, "Esc"))));
  box.addEventListener("close", () => box.remove());
  box.addEventListener("keydown", (event) => event.stopPropagation());
  root.append(box);
  box.showModal();
  return box;
}

function helpSheet(root, keys) {
  const rows = keys.map(([key, meaning]) => el("tr", {}, el("td", {}, el("kbd", {}, key)), el("td", {}, meaning)));
  dialog(root, "Keys", el("table", {}, rows), []);
}

/** Asks why, then puts the task back. */
function putBack(page, verb) {
  const reasons = page.data[`${verb}_reasons`];
  const choices = reasons.map((reason, place) => el("label", { class: "choice" },
    el("input", { type: "radio", name: "reason", value: reason, checked: place === 0 }), " ", reason));
  const more = el("input", { type: "text", maxlength: "500", "aria-label": "More, if you like", placeholder: "More, if you like" });
  const problem = el("p", { class: "bad", role: "alert" });
  const meaning = verb === "skip" ? "It is not for you. Others will get it." : "Something is wrong with the task itself.";
  const go = el("button", { type: "button", class: "primary", onclick: async () => {
    go.disabled = true;
    const chosen = box.querySelector("input:checked").value;
    const reason = more.value ? `${chosen}: ${more.value}` : chosen;
    const reply = await page.send("/api/page/put-back", { token: page.data.token, verb, reason });
    go.disabled = false;
    if (!reply.ok) {
      problem.textContent = `Not done: ${reply.error}.`;
      return;
    }
    box.close();
    page.leave(verb === "skip" ? "skipped" : "flagged");
  } }, verb === "skip" ? "Skip this task" : "Flag this task");
  const form = el("div", {}, el("p", {}, meaning), choices, more, problem);
  const box = dialog(page.root, verb === "skip" ? "Skip this task" : "Flag this task", form, [go]);
}

/** What both pages do the same way. `body()` gives the draft, `payload()` what is handed in. */
class WorkPage {
  constructor(component) {
    this.component = component;
    this.data = component.data;
    this.root = component.parentElement.querySelector(".work") || component.parentElement;
    this.state = new StateLine();
    this.saver = new Saver(this.data, (kind, detail) => this.state.show(kind, detail));
    this.state.place = this.saver.place;
    const draft = this.saver.body || {};
    this.time = new ActiveTime(draft.active_ms || 0);
    this.pasted = draft.pasted_chars || 0;
    this.problem = el("p", { class: "bad problem", role: "alert" });
    this.onKey = (event) => this.key(event);
    this.onHide = () => { if (document.hidden) this.saver.flush({ keepalive: true }); };
    this.onLeave = () => this.saver.flush({ keepalive: true });
    document.addEventListener("keydown", this.onKey);
    document.addEventListener("visibilitychange", this.onHide);
    window.addEventListener("pagehide", this.onLeave);
    this.onOnline = () => this.saver.flush();
    window.addEventListener("online", this.onOnline);
  }

  header() {
    const { data } = this;
    const timer = el("span", { class: "timer", title: "Time at work on this task" });
    this.time.onTick = (ms) => { timer.textContent = `active ${clock(ms)}`; };
    this.time.onTick(this.time.ms);
    const correcting = data.purpose !== "work";
    if (this.saver.restored) this.state.show("typing");
    return el("header", {},
      el("span", { role: "heading", "aria-level": "1" }, `Task ${data.task_id} · ${data.name}`, correcting ? ` · ${data.purpose === "adjudicate" ? "your version" : "correction"}` : ` · ${data.today} of your ${data.goal} today`),
      timer, el("span", { class: "said", role: "status" }, data.said), this.state.node,
      el("span", { class: "tools" },
        data.can_undo ? button("Undo last", "Alt+U", () => this.undo()) : null,
        correcting ? button("Keep as it was", "Alt+K", () => this.giveUp()) : [
          button("Skip", "F8", () => putBack(this, "skip")),
          button("Flag", "F7", () => putBack(this, "flag"))],
        button("Keys", "F1", () => helpSheet(this.root, this.keys()))));
  }

  changed() {
    this.saver.change(this.body());
  }

  /** POST, tried again while nobody answers; the same key makes it count once. */
  async send(path, body) {
    let reply = await post(this.data, path, body);
    for (let place = 0; mayRetry(reply) && place < TRIES && !this.gone; place++) {
      this.problem.textContent = "The server does not answer; trying again…";
      await sleep(RETRY_MS[Math.min(place, RETRY_MS.length - 1)]);
      reply = await post(this.data, path, body);
    }
    this.problem.textContent = "";
    return reply;
  }

  async submit() {
    if (this.sending || !this.ready()) return;
    this.sending = true;
    this.submitButton.disabled = true;
    clearTimeout(this.saver.timer);
    const trace = { active_ms: Math.round(this.time.ms), pasted_chars: this.pasted };
    const reply = await this.send("/api/page/submit", {
      token: this.data.token, key: this.data.token, kind: this.data.kind, trace, ...this.payload(),
    });
    this.sending = false;
    this.submitButton.disabled = false;
    if (reply.ok) {
      this.saver.close();
      this.saver.forget();
      this.leave("submitted");
      return;
    }
    const safe = reply.status === 409 ? "Your text is kept below" : "Your text is kept";
    this.problem.textContent = `Not handed in: ${reply.error}. ${safe}.`;
    if (reply.status === 409) this.lost();
    else this.saver.soon(0);
  }

  /** The task is somebody else's by now: the words stay until the person goes on. */
  lost() {
    this.problem.append(" ", el("button", { type: "button", onclick: () => this.leave("gone") }, "Next task"));
  }

  async giveUp() {
    this.saver.close();
    const reply = await this.send("/api/page/give-up", { token: this.data.token });
    if (!reply.ok) {
      this.problem.textContent = `Not done: ${reply.error}.`;
      return;
    }
    this.saver.forget();
    this.leave("kept");
  }

  async undo() {
    await this.saver.flush();
    this.component.setTriggerValue("undo", Date.now());
  }

  leave(how) {
    this.root.setAttribute("aria-busy", "true");
    const go = () => this.component.setTriggerValue("done", { task: this.data.task_id, how, at: Date.now() });
    clearInterval(this.leaving);
    this.leaving = setInterval(go, GO_ON_MS);
    go();
  }

  key(event) {
    const ctrl = event.ctrlKey || event.metaKey;
    const does = (deed) => { event.preventDefault(); deed(); };
    if (this.root.querySelector("dialog[open]")) return;
    if (ctrl && event.key === "Enter") does(() => this.submit());
    else if (ctrl && event.key.toLowerCase() === "s") does(() => this.saver.flush());
    else if (event.key === "F8" && this.data.purpose === "work") does(() => putBack(this, "skip"));
    else if (event.key === "F7" && this.data.purpose === "work") does(() => putBack(this, "flag"));
    else if (event.key === "F1" || (event.key === "?" && !this.typing(event))) does(() => helpSheet(this.root, this.keys()));
    else if (event.altKey && event.code === "KeyU" && this.data.can_undo) does(() => this.undo());
    else if (event.altKey && event.code === "KeyK" && this.data.purpose !== "work") does(() => this.giveUp());
    else if (event.altKey && event.code === "KeyI") does(() => this.toggleGuide());
    else this.more(event, does);
  }

  typing(event) {
    const target = event.composedPath()[0];
    return target instanceof HTMLElement && (target.matches("textarea, input[type=text]") || target.isContentEditable);
  }

  toggleGuide() {
    const details = this.root.querySelector("details.guide");
    details.open = !details.open;
    if (details.open) details.querySelector(".clauses").focus();
  }

  close() {
    this.gone = true;
    clearInterval(this.leaving);
    this.time.close();
    this.saver.flush({ keepalive: true });
    document.removeEventListener("keydown", this.onKey);
    document.removeEventListener("visibilitychange", this.onHide);
    window.removeEventListener("pagehide", this.onLeave);
    window.removeEventListener("online", this.onOnline);
  }
}

const COMMON_KEYS = [
  ["Ctrl+Enter", "hand it in"], ["Ctrl+S", "save now (it is saved by itself within two seconds)"],
  ["F8", "skip"], ["F7", "flag"], ["Alt+U", "undo: correct what you handed in last"],
  ["Alt+I", "instructions"], ["F1 or ?", "this sheet"],
];

/** One page for each task: a rerun of the same task leaves what is typed alone. */
function mount(Page) {
  const shown = new WeakMap();
  return (component) => {
    const place = component.parentElement;
    const old = shown.get(place);
    const name = `${component.data.token}`;
    if (old && old.name === name) {
      old.page.component = component;
      old.page.data.page_token = component.data.page_token;
    } else {
      if (old) old.page.close();
      const root = place.querySelector(".work");
      root.replaceChildren();
      root.removeAttribute("aria-busy");
      const page = new Page(component);
      shown.set(place, { name, page });
    }
    return () => {
      const now = shown.get(place);
      if (now) {
        now.page.close();
        shown.delete(place);
      }
    };
  };
}
