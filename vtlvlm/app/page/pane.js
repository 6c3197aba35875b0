// One clip: how it comes in, how far its work is, and what was found.
import {ask, bytes, clock, made, percent, rail, Refused, wait} from "./parts.js";
import {Timeline} from "./timeline.js";

const SHOWN = 5, LONGEST_TAKE = 60;
const STAGES = {
  stored: () => "Waiting for its turn",
  waiting: () => "Waiting for its turn",
  recognising: now => "Reading the video and recognising, " + now.elapsed.toFixed(0) + " s so far",
  preview: now => "Making a copy that the browser plays: " + of(now),
  segments: now => "Looking for actions along the video: " + of(now),
};
const short = seconds => seconds < 60 ? seconds.toFixed(0) + " s" : clock(seconds);
const of = now => short(now.seconds) + (now.length ? " of " + short(now.length) : "");

export class Pane {
  constructor(letter, model, codes, changed) {
    this.letter = letter; this.model = model; this.changed = changed;
    this.root = document.getElementById("pane").content.firstElementChild.cloneNode(true);
    this.part = name => this.root.querySelector("." + name);
    this.root.id = "clip-" + letter.toLowerCase();
    this.part("file").id = "file-" + letter.toLowerCase();
    this.root.setAttribute("aria-label", "Clip " + letter);
    this.part("limits").textContent = "Any video up to " + bytes(model.bytes) + " and " + model.minutes + " minutes.";
    this.part("seconds").value = Number(model.clip.toFixed(2));
    this.timeline = new Timeline(this.part("timeline"), this.part("panel"), this.part("clip"), codes);
    this.codes = codes;
    this.listen();
    this.enter("empty");
  }

  listen() {
    const drop = this.part("drop"), on = (name, event, work) => this.part(name).addEventListener(event, work);
    on("file", "change", event => { const [file] = event.target.files; event.target.value = ""; if (file) this.take(file, file.name); });
    for (const event of ["dragenter", "dragover"]) drop.addEventListener(event, e => { e.preventDefault(); drop.classList.add("over"); });
    for (const event of ["dragleave", "drop"]) drop.addEventListener(event, e => { e.preventDefault(); drop.classList.remove("over"); });
    drop.addEventListener("drop", event => {
      const [file] = event.dataTransfer.files;
      if (file) this.take(file, file.name);
      else this.fail("That was no file. Drop a video file, or choose one.");
    });
    on("record", "click", () => this.record());
    on("cancel", "click", () => this.clear());
    on("another", "click", () => this.clear());
    on("segment", "click", () => this.again("segments?clip=" + encodeURIComponent(this.part("seconds").value)));
    on("all", "click", () => this.bars(this.answer.actions.length));
    on("clip", "error", () => this.unplayable());
  }

  // What is visible: empty, camera, work (nothing to show yet) or result, beside which work may go on.
  enter(stage, working = stage === "work") {
    this.root.dataset.stage = stage;
    this.part("drop").hidden = stage !== "empty";
    this.part("camera").hidden = stage !== "camera";
    this.part("work").hidden = !working;
    this.part("result").hidden = stage !== "result";
    this.part("title").textContent = this.name ? (this.letter === "A" && !this.paired ? this.name : this.letter + ": " + this.name) : this.paired ? "Clip " + this.letter : "";
    this.part("title").hidden = !this.part("title").textContent;
  }

  fail(line) {
    this.part("error").textContent = line;
    this.part("error").hidden = !line;
  }

  say(line, done) {
    this.part("state").textContent = line;
    const bar = this.part("progress");
    if (done === undefined) bar.removeAttribute("value");
    else bar.value = done;
  }

  // Remove the clip, here and on the server.
  clear() {
    this.turn = (this.turn || 0) + 1;
    if (this.sending) this.sending.abort();
    if (this.id) ask("/clips/" + this.id, "DELETE").catch(() => {});
    this.id = this.answer = this.name = this.shownSegments = null;
    this.part("search").open = false;
    this.copied = false;
    const video = this.part("clip");
    video.removeAttribute("src");
    video.load();
    this.fail("");
    this.enter("empty");
    this.changed();
  }

  leave() { if (this.id) fetch("/clips/" + this.id, {method: "DELETE", keepalive: true}).catch(() => {}); }

  async take(file, name) {
    this.clear();
    const turn = this.turn;
    if (!file.size) return this.fail(name + " is empty (0 bytes). Choose a video.");
    if (file.size > this.model.bytes) return this.fail(name + " has " + bytes(file.size) + ", and this server takes " + bytes(this.model.bytes) + " at most. Send a shorter piece.");
    this.name = name;
    this.enter("work");
    try {
      const id = await this.send(file);
      if (turn !== this.turn) { ask("/clips/" + id, "DELETE").catch(() => {}); return; }
      this.id = id;
      await this.begin("recognise");
      await this.watch(turn);
    } catch (error) {
      if (turn === this.turn) this.broken(error);
    }
  }

  broken(error) {
    const name = this.name, line = error instanceof Refused ? error.message : "The page has a defect: " + error.message;
    if (this.answer) { this.enter("result"); this.fail(line); return; }
    this.clear();
    this.fail(name + ": " + line);
  }

  // The file's bytes, with progress; the server gives the clip a name.
  send(file) {
    return new Promise((done, failed) => {
      const request = this.sending = new XMLHttpRequest();
      request.open("POST", "/clips");
      request.responseType = "json";
      request.upload.onprogress = event => this.say("Sending: " + bytes(event.loaded) + " of " + bytes(file.size), event.loaded / file.size);
      request.onload = () => request.status === 201 ? done(request.response.id) : failed(new Refused((request.response || {}).error || "The server answered with status " + request.status + ".", request.status));
      request.onerror = () => failed(new Refused("The upload broke off. Is the server still running?", 0));
      this.say("Sending", 0);
      request.send(file);
    });
  }

  // Start a work on the server; wait as it says while its queue is full.
  async begin(work) {
    for (const turn = this.turn; turn === this.turn;) {
      try {
        return await ask("/clips/" + this.id + "/" + work, "POST");
      } catch (error) {
        if (error.status !== 503) throw error;
        this.say("Other clips are before yours");
        await wait(1000 * (error.again || 2));
      }
    }
  }

  async watch(turn) {
    for (let pause = 100; turn === this.turn; pause = Math.min(1000, 1.5 * pause)) {
      const now = await ask("/clips/" + this.id);
      if (turn !== this.turn) return;
      if (now.stage === "failed") throw new Refused(now.error, 422);
      if (now.answer && !this.answer) await this.show(now);
      if (this.answer) this.update(now);
      if (now.stage === "done") { this.enter("result"); return; }
      if (this.answer) this.enter("result", true);
      this.say((STAGES[now.stage] || STAGES.waiting)(now), now.seconds && now.length ? now.seconds / now.length : undefined);
      await wait(pause);
    }
  }

  async again(work) {
    if (!this.part("work").hidden) return;
    this.fail("");
    const turn = this.turn;
    try {
      await this.begin(work);
      await this.watch(turn);
    } catch (error) {
      if (turn === this.turn) this.broken(error);
    }
  }

  async show(now) {
    const {events} = now.answer;
    if (events && events.codes) await this.codes.fetch(events.codes.flat());
    this.answer = now.answer;
    this.enter("result", true);
    this.bars(SHOWN);
    this.headline(now);
    const none = this.part("none");
    none.hidden = !this.rejected;
    none.textContent = "This clip is unlike anything the model was trained on. These are the nearest actions of its list.";
    this.timeline.show(now.answer);
    this.changed();
  }

  get rejected() { return Boolean(this.answer.familiarity && this.answer.familiarity.rejected); }

  headline(now) {
    const [best] = this.answer.actions, named = best.action + ", " + percent(best.probability), found = now.segments;
    const [line, beside] = found && found.segments.length ? [found.segments.length + (found.segments.length === 1 ? " action" : " actions") + " along the video", "as one clip: " + named]
      : now.long ? ["A long video", "as one clip: " + named]
      : this.rejected ? ["None of its actions", "nearest: " + named]
      : [best.action, percent(best.probability)];
    this.part("answer").replaceChildren(made("strong", line), made("span", beside));
    this.part("likely").textContent = now.long || (found && found.segments.length) ? "Most likely, as one clip" : "Most likely";
  }

  update(now) {
    const video = this.part("clip"), copy = now.video && this.copied && now.stage === "done";
    const wanted = now.video ? "/clips/" + this.id + "/video" + (copy ? "?copy" : "") : null;
    if (wanted && video.getAttribute("src") !== wanted && !(this.copied && !copy)) video.src = wanted;
    video.hidden = !now.video;
    this.part("novideo").hidden = !now.video_error;
    this.part("novideo").textContent = now.video_error ? "The video cannot be played here: " + now.video_error : "";
    const found = now.segments, list = this.part("found");
    const key = JSON.stringify(found);
    if (key === this.shownSegments) return;
    this.shownSegments = key;
    this.timeline.segments(found);
    list.replaceChildren(...(found ? found.segments : []).map(one => {
      const item = made("li"), button = made("button");
      button.type = "button";
      button.append(made("span", clock(one.start) + " – " + clock(one.end)), made("span", one.action), made("span", percent(one.score)));
      button.addEventListener("click", () => this.timeline.seek(one.start));
      item.append(button);
      return item;
    }));
    if (found) this.part("search").open = true;
    this.headline(now);
    if (found && found.error) list.append(made("li", found.error, "error"));
    else if (found && !found.segments.length) list.append(made("li", "No action was found: nothing moves, or no action is likely enough.", "soft"));
  }

  bars(number) {
    const {actions} = this.answer;
    this.part("bars").replaceChildren(...actions.slice(0, number).map(one => {
      const item = made("li");
      item.append(made("span", one.action, "action"), made("span", percent(one.probability), "number"), rail(one.probability));
      return item;
    }));
    const left = actions.length - number;
    this.part("all").hidden = left <= 0;
    this.part("all").textContent = "Show " + left + " more";
  }

  // A browser may not play what others do: the server makes a copy that it plays.
  unplayable() {
    if (!this.id || !this.answer || this.copied || !this.part("clip").getAttribute("src")) return;
    this.copied = true;
    this.again("preview");
  }

  async record() {
    this.fail("");
    if (!navigator.mediaDevices || !window.MediaRecorder) {
      return this.fail("The browser gives its camera only to pages of this machine (localhost) or over https. Open the page there, or choose a file.");
    }
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({video: {width: {ideal: 640}, height: {ideal: 480}}, audio: false});
    } catch (error) {
      return this.fail(error.name === "NotAllowedError" ? "The browser was not allowed to use the camera." : "There is no camera that the browser can use (" + error.name + ").");
    }
    const kind = ["video/webm;codecs=vp8", "video/webm", "video/mp4"].find(one => MediaRecorder.isTypeSupported(one));
    const recorder = new MediaRecorder(stream, kind ? {mimeType: kind} : {}), parts = [], live = this.part("live"), began = performance.now();
    let kept = true;
    this.enter("camera");
    live.srcObject = stream;
    live.play().catch(() => {});
    const timer = setInterval(() => {
      const seconds = (performance.now() - began) / 1000;
      this.part("length").textContent = seconds.toFixed(0) + " s of " + LONGEST_TAKE + " s at most";
      if (seconds >= LONGEST_TAKE) recorder.stop();
    }, 200);
    recorder.ondataavailable = event => parts.push(event.data);
    recorder.onstop = () => {
      clearInterval(timer);
      for (const track of stream.getTracks()) track.stop();
      live.srcObject = null;
      if (kept) this.take(new Blob(parts, {type: recorder.mimeType}), "Recording of " + new Date().toLocaleTimeString());
      else this.enter("empty");
    };
    this.part("stop").onclick = () => recorder.stop();
    this.part("discard").onclick = () => { kept = false; recorder.stop(); };
    this.part("stop").focus();
    recorder.start();
  }
}
