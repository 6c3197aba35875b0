// Starts the page: asks for the model, makes the first clip's place and, if wanted, the second's.
import {ask} from "./parts.js";
import {Codes} from "./codes.js";
import {Comparison} from "./compare.js";
import {Pane} from "./pane.js";

const $ = name => document.getElementById(name), panes = [];

async function start() {
  let model;
  try {
    model = await ask("/api/model");
  } catch (error) {
    $("model").textContent = error.message;
    return;
  }
  const kind = model.sentence ? "a model with event sentences" : "a model without event sentences";
  $("model").textContent = model.name + ": " + kind + ", knows " + model.actions + " actions.";
  document.title = model.name + " – vtlvlm";
  const codes = new Codes(model), comparison = new Comparison(codes);
  const changed = () => {
    $("more").hidden = panes.length > 1 || !panes[0].answer;
    comparison.show(...panes);
  };
  const add = letter => {
    const pane = new Pane(letter, model, codes, changed);
    panes.push(pane);
    $("panes").append(pane.root);
    return pane;
  };
  add("A");
  $("second").addEventListener("click", () => {
    const pane = add("B");
    $("panes").classList.add("pair");
    for (const one of panes) { one.paired = true; one.enter(one.root.dataset.stage, !one.part("work").hidden); }
    changed();
    pane.part("file").focus();
  });
  for (const event of ["dragover", "drop"]) addEventListener(event, e => e.preventDefault());  // a file dropped beside a place opens nothing
  addEventListener("pagehide", () => { for (const pane of panes) pane.leave(); });
  addEventListener("pageshow", event => { if (event.persisted) location.reload(); });
  document.body.dataset.ready = "yes";
}

start();
