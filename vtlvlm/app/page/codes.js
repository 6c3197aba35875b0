// What the bundle's event dictionary says about codes, asked for once each.
import {ask, colourOf, made, percent} from "./parts.js";

const NO_DICTIONARY = "This bundle has no event dictionary, so a code is only a number here. `vtlvlm dictionary` makes one, and `vtlvlm export --dictionary` adds it.";

export class Codes {
  constructor(model) { this.known = model.dictionary; this.entries = new Map(); }

  async fetch(numbers) {
    if (!this.known) return;
    const missing = [...new Set(numbers)].filter(code => !this.entries.has(code));
    for (let first = 0; first < missing.length; first += 256) {
      const found = await ask("/codes?ids=" + missing.slice(first, first + 256).join(","));
      for (const [code, entry] of Object.entries(found)) this.entries.set(Number(code), entry);
    }
  }

  // How clearly a code points to an action, in nats.
  telling(code) {
    const entry = this.entries.get(code);
    return entry && entry.actions.length ? entry.actions[0].pmi : 0;
  }

  // Codes and how often each is among them: the most telling first, then the most frequent.
  ranked(numbers) {
    const counts = new Map();
    for (const code of numbers) counts.set(code, (counts.get(code) || 0) + 1);
    return [...counts].sort((a, b) => this.telling(b[0]) - this.telling(a[0]) || b[1] - a[1] || a[0] - b[0]);
  }

  // Show a code's card.
  show(root, code) {
    const parts = [made("h4", "Code " + code)], entry = this.entries.get(code);
    if (!this.known) parts.push(made("p", NO_DICTIONARY));
    else if (entry) parts.push(...this.card(code, entry));
    root.replaceChildren(...parts);
  }

  card(code, entry) {
    const parts = [];
    const often = entry.tokens ? percent(entry.share) + " of all codes in training, in " + entry.clips + (entry.clips === 1 ? " clip" : " clips") : "Never seen in training";
    parts.push(made("p", often + (entry.seconds ? "; it stays for " + entry.seconds[1].toFixed(2) + " s (median)" : "") + "."));
    if (entry.pictures) {
      const pictures = made("div", null, "pictures");
      for (let place = 0; place < entry.pictures; place++) {  // one file has them side by side
        const picture = made("img");
        picture.src = "/codes/" + code + ".webp";
        picture.width = picture.height = 96;
        picture.style.objectPosition = -96 * place + "px 0";
        picture.alt = place ? "" : entry.pictures + " cells of training clips with code " + code;
        pictures.append(picture);
      }
      parts.push(pictures);
    }
    if (entry.actions.length) {
      const list = made("dl");
      for (const one of entry.actions) list.append(made("dt", one.action), made("dd", "+" + one.pmi.toFixed(2) + " nats, " + one.clips + " clips"));
      parts.push(made("p", "It points to:"), list);
    } else parts.push(made("p", "It points to no action."));
    return parts;
  }

  // A code as a button.
  chip(code, text, chosen) {
    const chip = made("button", text === undefined ? code : text, "chip"), {back, ink} = colourOf(code);
    chip.type = "button";
    chip.style.background = back;
    chip.style.color = ink;
    for (const event of ["mouseenter", "focus", "click"]) chip.addEventListener(event, () => chosen(chip, code));
    return chip;
  }
}

// Mark one element of a group.
export function choose(group, element) {
  for (const other of group.querySelectorAll(".chosen")) other.classList.remove("chosen");
  if (element) element.classList.add("chosen");
}
