// Two clips beside each other: windows that correspond, codes of both, probabilities.
import {ask, cells, made, percent, rail} from "./parts.js";
import {choose} from "./codes.js";

const SVG = "http://www.w3.org/2000/svg", $ = name => document.getElementById(name);

export class Comparison {
  constructor(codes) { this.codes = codes; this.key = null; }

  async show(a, b) {
    const key = a && b && a.answer && b.answer ? a.id + " " + b.id : null;
    if (key === this.key) return;
    this.key = key;
    $("comparison").hidden = key === null;
    if (key === null) return;
    this.probabilities(a.answer.actions, b.answer.actions);
    const coded = [a, b].every(one => one.answer.events && one.answer.events.codes);
    $("aligned").replaceChildren();
    $("shared").parentElement.hidden = !coded;
    $("likeness").textContent = coded ? "" : "This model has no event sentences to lay beside each other.";
    if (!coded) return;
    try {
      const found = await ask("/compare?a=" + encodeURIComponent(a.id) + "&b=" + encodeURIComponent(b.id));
      if (key === this.key) this.sentences(a.answer.events, b.answer.events, found);
    } catch (error) {
      $("likeness").textContent = error.message;
    }
  }

  sentences(a, b, found) {
    $("likeness").textContent = "The windows of both clips in their order, each joined with the one that has most codes in common in the same cells. "
      + percent(found.likeness) + " of the cells agree.";
    const said = made("p", "Point at a window, or move to it with the Tab key, to see what it shares.", "pair-said");
    said.setAttribute("aria-live", "polite");
    const svg = document.createElementNS(SVG, "svg");
    svg.setAttribute("viewBox", "0 0 1000 100");
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("class", "links");
    svg.setAttribute("aria-hidden", "true");
    const lines = found.pairs.map(([i, j, share]) => {
      const line = document.createElementNS(SVG, "line");
      line.setAttribute("x1", 1000 * (i + 0.5) / a.codes.length);
      line.setAttribute("x2", 1000 * (j + 0.5) / b.codes.length);
      line.setAttribute("y1", 0);
      line.setAttribute("y2", 100);
      line.setAttribute("stroke-width", 1.5 + 4 * share);
      line.setAttribute("stroke-opacity", 0.35 + 0.65 * share);
      svg.append(line);
      return line;
    });
    const rows = [["A", a.codes], ["B", b.codes]].map(([letter, codes], side) => {
      const row = made("div", null, "row");
      row.append(made("b", letter));
      codes.forEach((own, number) => {
        const tile = made("button", null, "tile"), pair = found.pairs.findIndex(one => one[side] === number);
        tile.type = "button";
        tile.setAttribute("aria-label", "Window " + (number + 1) + " of " + letter);
        tile.append(cells(own));
        const point = () => {
          for (const one of [...rows.flatMap(r => [...r.children]), ...lines]) one.classList.remove("chosen");
          tile.classList.add("chosen");
          if (pair < 0) { said.textContent = "Window " + (number + 1) + " of " + letter + " has no partner."; return; }
          const [i, j] = found.pairs[pair];
          lines[pair].classList.add("chosen");
          rows[1 - side].children[1 + (side ? i : j)].classList.add("chosen");
          const same = a.codes[i].filter((code, cell) => code === b.codes[j][cell]);
          said.textContent = "Window " + (i + 1) + " of A and window " + (j + 1) + " of B have " + same.length + " of " + a.codes[i].length + " cells in common: "
            + (same.length === 1 ? "code " : "codes ") + [...new Set(same)].join(", ") + ".";
        };
        for (const event of ["mouseenter", "focus", "click"]) tile.addEventListener(event, point);
        row.append(tile);
      });
      return row;
    });
    $("aligned").replaceChildren(rows[0], svg, rows[1], said);
    const shared = $("shared"), card = $("shared-code");
    const show = (chip, code) => { choose(shared, chip); this.codes.show(card, code); };
    shared.replaceChildren(...found.shared.slice(0, 40).map(([code, one, other]) => {
      const chip = this.codes.chip(code, code + " · " + one + ", " + other, show);
      chip.setAttribute("aria-label", "Code " + code + ", " + one + " times in A, " + other + " times in B");
      return chip;
    }));
    card.replaceChildren();
    if (found.shared.length) show(shared.firstChild, found.shared[0][0]);
    else shared.append(made("p", "No code is in both.", "soft"));
  }

  probabilities(a, b) {
    const names = [...new Set([...a.slice(0, 5), ...b.slice(0, 5)].map(one => one.action))];
    const of = (list, name) => (list.find(one => one.action === name) || {probability: null}).probability;
    const most = name => Math.max(of(a, name), of(b, name));
    names.sort((x, y) => most(y) - most(x));
    const named = names.filter((name, place) => place < 3 || most(name) >= 0.001);
    const head = made("tr");
    head.append(made("th", "Action"), made("th", "A", "number"), made("th", "B", "number"));
    $("both").replaceChildren(head, ...named.map(name => {
      const row = made("tr");
      row.append(made("td", name));
      for (const list of [a, b]) {
        const p = of(list, name), cell = made("td", p === null ? "below its first 20" : percent(p), "number");
        if (p !== null) cell.append(rail(p));
        row.append(cell);
      }
      return row;
    }));
  }
}
