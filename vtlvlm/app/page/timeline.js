// The event sentence under the video: a bar for each window, the frames the model looked at, segments, and a play head.
import {actionColour, cells, clock, made, percent} from "./parts.js";
import {choose} from "./codes.js";

export class Timeline {
  constructor(root, panel, video, codes) {
    this.root = root; this.panel = panel; this.video = video; this.codes = codes;
    this.length = 0; this.windows = []; this.buttons = []; this.held = false;
    video.addEventListener("timeupdate", () => this.move());
    video.addEventListener("seeked", () => this.move());
    video.addEventListener("play", () => this.follow());
    for (const part of [root, panel]) {
      part.addEventListener("pointerenter", () => { this.held = true; });
      part.addEventListener("pointerleave", () => { this.held = false; });
    }
  }

  show(answer) {
    const {events, sampled} = answer;
    this.length = Math.max(sampled.seconds, 1e-3);
    this.picked = null;
    this.windows = events ? events.spans.map(([start, end], number) => ({start, end, number, codes: events.codes && events.codes[number]})) : [];
    this.buttons = this.windows.map(one => this.bar(one));
    const parts = [];
    if (this.buttons.length) {
      const track = made("div", null, "track windows");
      track.setAttribute("role", "group");
      track.setAttribute("aria-label", "Event sentence of " + this.buttons.length + " windows: arrow keys move, Enter goes to the window in the video");
      track.append(...this.buttons);
      track.addEventListener("keydown", event => this.key(event));
      this.buttons[0].tabIndex = 0;
      parts.push(made("h3", "Event sentence"), track);
    }
    this.pieces = made("div", null, "track segments");
    this.pieces.hidden = true;
    const seen = made("div", null, "track seconds-track");
    seen.title = "The frames that the model looked at";
    for (const at of sampled.times) {
      const tick = made("div", null, "tick");
      tick.style.left = 100 * Math.min(1, at / this.length) + "%";
      seen.append(tick);
    }
    seen.addEventListener("click", event => {
      const box = seen.getBoundingClientRect();
      this.seek(this.length * Math.max(0, Math.min(1, (event.clientX - box.left) / box.width)));
    });
    this.head = made("div", null, "playhead");
    const tracks = made("div", null, "tracks"), axis = made("div", null, "axis");
    tracks.style.position = "relative";
    for (const share of [0, 0.5, 1]) axis.append(made("span", clock(share * this.length)));
    tracks.append(...parts.slice(1), this.pieces, seen, axis, this.head);
    const legend = this.buttons.length ? "A bar is a window of the sentence; its squares are the cells of the picture, coloured by their codes. " : "";
    this.root.replaceChildren(...parts.slice(0, 1), tracks, made("p", legend + "The marks are the frames that the model looked at.", "soft legend"));
    this.move();
    if (this.buttons.length) this.pick(this.telling());
    else this.panel.replaceChildren(made("p", "This model has no event sentence. The marks are the frames that it looked at.", "soft"));
  }

  bar(one) {
    const button = made("button", null, "window");
    button.type = "button";
    button.tabIndex = -1;
    button.style.left = 100 * one.start / this.length + "%";
    button.style.width = 100 * Math.max(0, Math.min(one.end, this.length) - one.start) / this.length + "%";
    const codes = one.codes ? ", codes " + this.codes.ranked(one.codes).map(([code]) => code).join(", ") : "";
    button.setAttribute("aria-label", "Window " + (one.number + 1) + ", " + one.start.toFixed(2) + " to " + one.end.toFixed(2) + " seconds" + codes);
    button.append(cells(one.codes));
    button.addEventListener("mouseenter", () => this.pick(one.number));
    button.addEventListener("focus", () => this.pick(one.number));
    button.addEventListener("click", () => this.seek(one.start));
    return button;
  }

  // The window whose codes point to an action most clearly: a good first one to show.
  telling() {
    const clear = this.windows.map(one => one.codes ? Math.max(...one.codes.map(code => this.codes.telling(code))) : 0);
    return clear.indexOf(Math.max(...clear));
  }

  key(event) {
    const here = this.buttons.indexOf(document.activeElement), last = this.buttons.length - 1;
    const to = {ArrowRight: Math.min(here + 1, last), ArrowLeft: Math.max(here - 1, 0), Home: 0, End: last}[event.key];
    if (here < 0 || to === undefined) return;
    event.preventDefault();
    this.buttons[to].focus();
  }

  seek(seconds) { this.video.currentTime = seconds; this.move(seconds); }

  // Show a window's codes below the timeline.
  pick(number) {
    if (this.picked === number && this.panel.childElementCount) return;
    this.picked = number;
    choose(this.root, this.buttons[number]);
    this.buttons.forEach((button, other) => { button.tabIndex = other === number ? 0 : -1; });
    const one = this.windows[number];
    const title = made("h3", "Window " + (number + 1) + " of " + this.windows.length + ", " + one.start.toFixed(2) + " to " + one.end.toFixed(2) + " s");
    if (!one.codes) {
      this.panel.replaceChildren(title, made("p", "This model has no codebook: its events are vectors without numbers.", "soft"));
      return;
    }
    const square = Math.sqrt(one.codes.length), whole = Number.isInteger(square) && square <= 4;
    const group = made("div", null, whole ? "grid" : "chips"), card = made("div", null, "code");
    card.setAttribute("aria-live", "polite");
    if (whole) group.style.gridTemplateColumns = "repeat(" + square + ", auto)";
    group.setAttribute("role", "group");
    group.setAttribute("aria-label", whole ? "Codes of the window, where they are in the picture" : "Codes of the window");
    const show = (chip, code) => { choose(group, chip); this.codes.show(card, code); };
    const ranked = this.codes.ranked(one.codes);
    const rows = whole ? one.codes.map(code => [code]) : ranked;
    for (const [code, times] of rows) group.append(this.codes.chip(code, times > 1 ? code + " ×" + times : String(code), show));
    this.panel.replaceChildren(title, group, card);
    const first = ranked[0][0];
    show(group.children[rows.findIndex(([code]) => code === first)], first);
  }

  segments(found) {
    this.pieces.replaceChildren();
    this.pieces.hidden = !found || !found.segments.length;
    for (const one of found ? found.segments : []) {
      const piece = made("button", one.action, "piece");
      piece.type = "button";
      piece.tabIndex = -1;  // the list below the timeline has the same for the keyboard
      piece.style.left = 100 * one.start / this.length + "%";
      piece.style.width = 100 * Math.min(1, (one.end - one.start) / this.length) + "%";
      piece.style.background = actionColour(one.action);
      piece.title = one.action + ", " + clock(one.start) + " to " + clock(one.end) + ", " + percent(one.score);
      piece.addEventListener("click", () => this.seek(one.start));
      this.pieces.append(piece);
    }
  }

  // Put the play head where the video is.
  move(seconds = this.video.currentTime) {
    if (!this.head) return;
    this.head.style.left = 100 * Math.min(1, seconds / this.length) + "%";
    const now = this.windows.findLastIndex(one => one.start <= seconds + 1e-6);
    this.buttons.forEach((button, number) => button.classList.toggle("now", number === now));
    const focused = this.root.contains(document.activeElement) || this.panel.contains(document.activeElement);
    if (now >= 0 && !this.video.paused && !this.held && !focused) this.pick(now);
  }

  follow() {
    const step = () => { if (!this.video.paused) { this.move(); requestAnimationFrame(step); } };
    requestAnimationFrame(step);
  }
}
