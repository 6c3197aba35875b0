// Small parts of the page. Names from outside are shown as text only: made() sets textContent.

export function made(kind, text, css) {
  const element = document.createElement(kind);
  if (text !== undefined && text !== null) element.textContent = text;
  if (css) element.className = css;
  return element;
}

export const percent = p => p < 0.0005 ? "< 0.1 %" : (100 * p).toFixed(p < 0.0995 ? 1 : 0) + " %";

export function clock(seconds) {
  if (seconds < 60) return seconds.toFixed(2) + " s";
  const whole = Math.floor(seconds), rest = String(whole % 60).padStart(2, "0"), minutes = Math.floor(whole / 60);
  return minutes < 60 ? minutes + ":" + rest : Math.floor(minutes / 60) + ":" + String(minutes % 60).padStart(2, "0") + ":" + rest;
}

export function bytes(number) {
  return number < 1e6 ? (number / 1e3).toFixed(0) + " KB" : number < 1e9 ? Number((number / 1e6).toPrecision(3)) + " MB" : (number / 1e9).toFixed(2) + " GB";
}

// The colour of a code, as in all figures of the project: hue by the golden ratio, lightness by thirds, saturation one half.
export function colourOf(code) {
  const hue = (code * 0.618034) % 1, light = [0.42, 0.58, 0.74][code % 3], chroma = 0.5 * Math.min(light, 1 - light);
  const part = place => {
    const at = (place + 12 * hue) % 12;
    return light - chroma * Math.max(-1, Math.min(at - 3, 9 - at, 1));
  };
  const rgb = [part(0), part(8), part(4)];
  const luma = 0.2126 * rgb[0] + 0.7152 * rgb[1] + 0.0722 * rgb[2];
  return {back: "rgb(" + rgb.map(value => Math.round(255 * value)).join(",") + ")", ink: luma > 0.5 ? "#000" : "#fff"};
}

const SEGMENT_COLOURS = ["#0072B2", "#B84A00", "#00795A", "#9C4A7D", "#8A6100", "#2B7FB0", "#5B5B5B"];
const named = new Map();
export function actionColour(name) {
  if (!named.has(name)) named.set(name, SEGMENT_COLOURS[named.size % SEGMENT_COLOURS.length]);
  return named.get(name);
}

export function rail(share) {
  const outer = made("div", null, "rail"), inner = made("div");
  inner.style.width = 100 * share + "%";
  outer.append(inner);
  return outer;
}

// The cells of a window as a small picture: one square for each code.
export function cells(codes) {
  const grid = made("div", null, "cells");
  if (!codes) { grid.classList.add("bare"); return grid; }
  const columns = Math.ceil(Math.sqrt(codes.length));
  grid.style.gridTemplateColumns = "repeat(" + columns + ", 1fr)";
  for (const code of codes) {
    const cell = made("span");
    cell.style.background = colourOf(code).back;
    grid.append(cell);
  }
  return grid;
}

export class Refused extends Error {
  constructor(line, status, again) { super(line); this.status = status; this.again = again; }
}

// JSON from the server. Errors are its own line, or that it does not answer.
export async function ask(path, method = "GET") {
  let answer;
  try {
    answer = await fetch(path, {method});
  } catch {
    throw new Refused("The server does not answer. Is it still running?", 0);
  }
  if (answer.status === 204) return null;
  const said = await answer.json().catch(() => ({error: "The server answered with status " + answer.status + "."}));
  if (!answer.ok) throw new Refused(said.error || "The server answered with status " + answer.status + ".", answer.status, Number(answer.headers.get("retry-after")));
  return said;
}

export const wait = milliseconds => new Promise(done => setTimeout(done, milliseconds));
