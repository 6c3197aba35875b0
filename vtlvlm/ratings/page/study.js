"use strict";
// One page for both ways in: answers go to the server, or, in a self-contained file, into the browser's own storage until they are saved.
const $ = name => document.getElementById(name);
const made = (kind, text, css) => { const e = document.createElement(kind); if (text !== undefined) e.textContent = text; if (css) e.className = css; return e; };
const embedded = $("data");

// -- where answers go ---------------------------------------------------------------------------------------------------------
const server = {
  media: name => "media/" + name,
  async ask(method, path, body) {
    let answer;
    try {
      answer = await fetch(path, {method, headers: body ? {"content-type": "application/json"} : {}, body: body ? JSON.stringify(body) : undefined});
    } catch (error) {
      throw new Error("The server does not answer. Your answer is still here: try again in a moment.");
    }
    const content = await answer.json().catch(() => ({}));
    if (!answer.ok) throw new Error(content.error || "The server refused this (" + answer.status + ").");
    return content;
  },
  about() { return this.ask("GET", "about"); },
  begin() { return this.ask("POST", "sessions"); },
  resume(code) { return this.ask("GET", "sessions/" + encodeURIComponent(code)); },
  answer(code, answer) { return this.ask("POST", "sessions/" + encodeURIComponent(code) + "/answers", answer); },
  withdraw(code) { return this.ask("DELETE", "sessions/" + encodeURIComponent(code)); },
};

function offline(data) {
  const LETTERS = data.letters, key = "study-" + data.study + "-" + data.slot, held = {code: null, lines: []};
  const kept = () => { try { return JSON.parse(localStorage.getItem(key)); } catch (error) { return null; } };
  const keep = () => { try { localStorage.setItem(key, JSON.stringify(held)); } catch (error) { /* then only until the page is closed */ } };
  const view = () => {
    const at = held.lines.length, last = at >= data.steps.length, step = data.steps[at];
    return {code: held.code, done: last ? data.trials : step.number - 1, trials: data.trials, step: last ? null : step};
  };
  return {
    media: name => data.media[name],
    lines: () => [{study: data.study, rater: held.code, slot: data.slot}, ...held.lines].map(one => JSON.stringify(one) + "\n").join(""),
    async about() { return {...data.about, offline: true}; },
    async begin() {
      held.code = Array.from(crypto.getRandomValues(new Uint32Array(8)), value => LETTERS[value % LETTERS.length]).join("");
      held.lines = []; keep();
      return view();
    },
    async resume(code) {
      const before = kept();
      if (!before || before.code !== code) throw new Error("This browser holds no answers of that code for this page.");
      held.code = before.code; held.lines = before.lines;
      return view();
    },
    async answer(code, answer) { held.lines.push(answer); keep(); return view(); },
    async withdraw() { localStorage.removeItem(key); held.code = null; held.lines = []; return {}; },
    last() { const before = kept(); return before && before.code; },
  };
}
const source = embedded ? offline(JSON.parse(embedded.textContent)) : server;
let about = null, shownAt = 0, code = null, busy = false;

// -- pages --------------------------------------------------------------------------------------------------------------------
function page(...content) {
  $("main").replaceChildren(...content);
  $("said").textContent = "";
  scrollTo({top: 0});
  $("main").focus({preventScroll: true});
}
function head(view) {
  const running = view && view.step;
  $("progress").hidden = !running; $("code").hidden = !view; $("withdraw").hidden = !view;
  $("place").textContent = running ? "Trial " + (view.done + 1) + " of " + view.trials : "";
  if (!view) return;
  $("progress").value = view.done / view.trials;
  $("code").replaceChildren("your code: ", made("b", view.code));
}
async function doing(work) {
  if (busy) return;
  busy = true;
  for (const button of document.querySelectorAll("button")) button.disabled = true;
  try { await work(); }
  catch (error) { $("said").textContent = error.message; }
  busy = false;
  for (const button of document.querySelectorAll("button")) button.disabled = false;
}
function button(text, work, css) {
  const e = made("button", text, css);
  e.type = "button"; e.addEventListener("click", () => doing(work));
  return e;
}
function start() {
  code = null; head(null);
  const panel = made("section", undefined, "panel"), list = made("ul"), row = made("div", undefined, "row");
  for (const line of about.consent) list.append(made("li", line));
  panel.append(made("h1", "How well do these descriptions fit?"), made("p", about.text), made("h2", "Before you begin"), list);
  row.append(button("I agree: begin", async () => show(await source.begin()), "main"));
  panel.append(row);
  const again = made("section", undefined, "panel"), label = made("label", "Your code "), input = made("input"), line = made("div", undefined, "row");
  input.type = "text"; input.id = "known"; input.maxLength = 8; input.autocomplete = "off"; input.spellcheck = false;
  if (source.last && source.last()) input.value = source.last();
  label.append(input);
  const go = button("Continue", async () => show(await source.resume(input.value.trim().toLowerCase())));
  input.addEventListener("keydown", event => { if (event.key === "Enter") go.click(); });
  line.append(label, go);
  again.append(made("h2", "You have begun already?"), line);
  page(panel, again);
}
function seconds(value) { return value.toFixed(1); }
function described(step) {
  const panel = made("section", undefined, "panel"), strip = made("div", undefined, "strip"), cards = made("ol", undefined, "cards");
  panel.append(made("h2", "The description"));
  strip.setAttribute("aria-hidden", "true");
  for (const card of step.cards) {
    const letter = String.fromCharCode(65 + card.mark), part = made("span", letter, "m" + card.mark % 8);
    part.style.flexGrow = Math.max(card.end - card.start, 0.01);
    strip.append(part);
    const item = made("li"), top = made("div", undefined, "head");
    top.append(made("span", letter, "chip m" + card.mark % 8), made("span", seconds(card.start) + "–" + seconds(card.end) + " s"));
    item.append(top);
    if (card.picture) {
      const img = made("img");
      img.src = source.media(card.picture); img.width = img.height = 292;
      img.alt = "step " + letter + ": four pictures from other clips";
      item.append(img);
    } else item.append(made("div", "no picture of this step", "none"));
    if (card.words.length) item.append(made("p", card.words.join(" · "), "words"));
    cards.append(item);
  }
  panel.append(strip, cards, made("p", "Each step shows up to four moments from other clips; the frame marks the part that is meant. Equal letters are equal steps.", "soft"));
  return panel;
}
function options(name, legend, texts, values, css) {
  const set = made("fieldset"), row = made("div", undefined, "options " + (css || ""));
  set.append(made("legend", legend));
  texts.forEach((text, place) => {
    const label = made("label"), input = made("input");
    input.type = "radio"; input.name = name; input.value = values[place];
    label.append(input, made("kbd", String(place + 1)), made("span", text));
    row.append(label);
  });
  set.append(row);
  return set;
}
const chosen = set => { const e = set.querySelector("input:checked"); return e ? Number(e.value) : null; };
function keys(sets) {
  document.onkeydown = event => {
    if (event.ctrlKey || event.altKey || event.metaKey || event.target.type === "text") return;
    const own = sets.find(set => set.contains(event.target)) || sets.find(set => chosen(set) === null) || sets[sets.length - 1];
    const inputs = own.querySelectorAll("input"), place = Number(event.key) - 1;
    if (event.key.length === 1 && place >= 0 && place < inputs.length) {
      inputs[place].checked = true; event.preventDefault();
      const open = sets.find(set => chosen(set) === null);
      if (open) open.querySelector("input").focus(); else $("next").focus();
    }
  };
}
function form(step, sets, answer) {
  const panel = made("section", undefined, "panel");
  const next = button("Next", async () => {
    if (sets.some(set => chosen(set) === null)) throw new Error(sets.length > 1 ? "Please answer all questions." : "Please choose one.");
    const given = {trial: step.number - 1, step: step.name, ...answer(), ms: Math.round(performance.now() - shownAt)};
    show(await source.answer(code, given));
  }, "main");
  next.id = "next";
  panel.append(...sets, next, made("p", "Keys 1 to 5 choose.", "soft keys"));
  keys(sets);
  return panel;
}
function identify(step) {
  const set = options("choice", "Which action is this?", [...step.choices, "cannot tell"], [...step.choices.keys(), -1]);
  page(made("h1", (step.practice ? "Practice: " : "") + "read the description"), described(step), form(step, [set], () => ({choice: chosen(set)})));
}
function rate(step) {
  const sets = about.questions.map(question => options(question.name, question.text, about.scale, [1, 2, 3, 4, 5], "scale"));
  const scores = form(step, sets, () => ({scores: sets.map(chosen)}));
  if (step.check) {
    const note = made("section", undefined, "panel note");
    note.append(made("p", "This page checks that the questions are read. Please choose “" + about.scale[step.check - 1] + "” three times."));
    page(made("h1", "A short check"), note, scores);
    return;
  }
  const beside = made("div", undefined, "beside"), clip = made("section", undefined, "panel clip"), video = made("video");
  video.src = source.media(step.video);
  video.muted = video.loop = video.autoplay = video.controls = video.playsInline = true;
  clip.append(made("h2", "The clip"), video);
  beside.append(described(step), clip);
  page(made("h1", (step.practice ? "Practice: " : "") + "does the description fit the clip?"), beside, scores);
}
function end(view) {
  const panel = made("section", undefined, "panel");
  document.onkeydown = null;
  panel.append(made("h1", "Thank you"));
  if (about.offline) {
    panel.append(made("p", "Now save your answers, and give the file to the person who invited you. Nothing has been sent."));
    const link = made("a");
    link.download = view.code + ".jsonl"; link.href = "data:application/x-ndjson;charset=utf-8," + encodeURIComponent(source.lines());
    panel.append(button("Save my answers", async () => link.click(), "main"));
  } else panel.append(made("p", "All your answers are stored. You can close this page."));
  panel.append(made("p", "Keep your code if you may want to withdraw later.", "soft"));
  page(panel);
}
function show(view) {
  code = view.code; head(view);
  if (!view.step) end(view);
  else if (view.step.name === "identify") identify(view.step);
  else rate(view.step);
  shownAt = performance.now();
}
$("withdraw").addEventListener("click", () => doing(async () => {
  if (!confirm("Delete all your answers? They cannot be brought back.")) return;
  await source.withdraw(code);
  document.onkeydown = null; start();
  $("said").textContent = "Your answers are deleted.";
}));
doing(async () => { about = await source.about(); start(); });
