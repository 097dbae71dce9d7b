// The page: opens the artifact, then classifies the images or follows the object that the user gives it.
//
// Query: ?artifact=FOLDER (default artifact/) &key=onnx-fp32. A test adds images=A,B or video=FILE&box=x,y,w,h&fps=25, and
// report=URL, where the results are posted as JSON, and before them each frame that was seen (URL?frame=N, RGBA bytes).
import { openArtifact } from "./artifact.js";
import { classify } from "./classify.js";
import { pixelsOf } from "./images.js";
import { Tracker } from "./tracker.js";

const query = new URLSearchParams(location.search);
const key = query.get("key") ?? "onnx-fp32";
const SAME_FRAME_MS = 2000;
const $ = (id) => document.getElementById(id);

function say(text, wrong = false) {
  $("message").textContent = text;
  $("message").classList.toggle("wrong", wrong);
}

async function classifyAll(session, manifest, blobs) {
  const results = [];
  for (const [name, blob] of blobs) {
    const row = $("answers").insertRow();
    const thumb = Object.assign(document.createElement("img"), { className: "thumb", alt: "", src: URL.createObjectURL(blob) });
    row.insertCell().append(thumb);
    row.insertCell().textContent = name;
    try {
      const began = performance.now();
      const answer = await classify(session, manifest, blob);
      const time = performance.now() - began;
      row.insertCell().textContent = answer.label;
      Object.assign(row.insertCell(), { className: "number", textContent: `${(100 * answer.probability).toFixed(1)} %` });
      Object.assign(row.insertCell(), { className: "number", textContent: `${time.toFixed(0)} ms` });
      results.push({ image: name, ...answer });
    } catch (error) {
      Object.assign(row.insertCell(), { className: "wrong", textContent: `cannot be used: ${error.message}` });
      results.push({ image: name, error: error.message });
    }
  }
  say(`${results.length} images classified`);
  return results;
}

async function openVideo(url) {
  const video = Object.assign(document.createElement("video"), { muted: true, playsInline: true, src: url });
  await new Promise((done, failed) => {
    video.onloadeddata = done;
    video.onerror = () => failed(new Error("the browser cannot play this video"));
  });
  if (!video.videoWidth) throw new Error("the file holds no video");
  return video;
}

/**
 * Wind the video, and wait until that frame can be drawn. `seeked` alone comes too early: on a busy machine a canvas then
 * still gets the frame before, or none; the frame's own callback comes when it is shown. A browser that does not show the
 * same frame again gives no callback, so that the wait after `seeked` ends.
 */
async function seek(video, seconds) {
  const shown = new Promise((done) => video.requestVideoFrameCallback(done));
  await new Promise((done, failed) => {
    video.onseeked = done;
    video.onerror = () => failed(new Error(`the browser cannot decode this video at ${seconds.toFixed(2)} s`));
    video.currentTime = seconds;
  });
  await Promise.race([shown, new Promise((done) => setTimeout(done, SAME_FRAME_MS))]);
}

function show(video, box, text, lost = false) {
  const context = $("screen").getContext("2d");
  $("screen").width = video.videoWidth;
  $("screen").height = video.videoHeight;
  context.drawImage(video, 0, 0);
  if (!box) return;
  context.strokeStyle = lost ? "#d24b2f" : "#2fb36a";
  context.lineWidth = 3;
  context.strokeRect(...box);
  context.font = "16px system-ui";
  context.fillStyle = context.strokeStyle;
  context.fillText(text, box[0], Math.max(16, box[1] - 6));
}

/** Follow the box through the video, frame by frame; a file tells no frame rate, so it is given. */
async function follow(tracker, video, box, fps) {
  const frames = Math.max(1, Math.round(video.duration * fps));
  const results = [];
  for (let frame = 0; frame < frames; frame++) {
    await seek(video, (frame + 0.5) / fps);
    const image = pixelsOf(video, video.videoWidth, video.videoHeight);
    if (query.has("report")) await post(image.data, `?frame=${frame}`);
    if (frame === 0) {
      await tracker.init(image, box);
      results.push({ box, score: 1 });
      continue;
    }
    const began = performance.now();
    const found = await tracker.update(image);
    const time = performance.now() - began;
    show(video, found.box, `${found.lost ? "lost" : "score"} ${found.score.toFixed(2)}  ${time.toFixed(0)} ms`, found.lost);
    results.push(found);
  }
  say(`${frames} frames followed`);
  return results;
}

/** The box that the user draws, in the video's pixels. */
function drawnBox(video) {
  const screen = $("screen");
  const place = (event) => {
    const frame = screen.getBoundingClientRect();
    return [(event.clientX - frame.left) * (screen.width / frame.width), (event.clientY - frame.top) * (screen.height / frame.height)];
  };
  return new Promise((done) => {
    let from = null;
    const boxTo = ([x, y]) => [Math.min(from[0], x), Math.min(from[1], y), Math.abs(x - from[0]), Math.abs(y - from[1])];
    screen.onpointerdown = (event) => (from = place(event));
    screen.onpointermove = (event) => from && show(video, boxTo(place(event)), "");
    screen.onpointerup = (event) => {
      const box = from && boxTo(place(event));
      from = null;
      if (box && box[2] > 4 && box[3] > 4) done(box);
    };
  });
}

async function trackFile(tracker, file) {
  const video = await openVideo(URL.createObjectURL(file));
  show(video);
  say("draw a box around the object");
  const box = await drawnBox(video);
  return follow(tracker, video, box, Number(query.get("fps") ?? 25));
}

function post(body, more = "") {
  return fetch(query.get("report") + more, { method: "POST", body });
}

async function fetched(names) {
  return Promise.all(names.map(async (name) => [name, await (await fetch(name)).blob()]));
}

async function start() {
  const artifact = await openArtifact(query.get("artifact") ?? "artifact/");
  const { manifest } = artifact;
  if (manifest.task === "tracking") {
    const tracker = await Tracker.open(artifact, key);
    $("track").hidden = false;
    say("ready: choose a video");
    $("video").onchange = (event) => guarded(() => trackFile(tracker, event.target.files[0]));
    if (!query.has("video")) return null;
    // As a blob: a plain server answers no range requests, and without them a video cannot be wound.
    const [[, blob]] = await fetched([query.get("video")]);
    const video = await openVideo(URL.createObjectURL(blob));
    return follow(tracker, video, query.get("box").split(",").map(Number), Number(query.get("fps") ?? 25));
  }
  if (manifest.task !== "classification") throw new Error(`this page has no view for ${manifest.task}`);
  const session = await artifact.open(key);
  $("classify").hidden = false;
  say("ready: choose images");
  $("images").onchange = (event) =>
    guarded(() => classifyAll(session, manifest, Array.from(event.target.files, (file) => [file.name, file])));
  return query.has("images") ? classifyAll(session, manifest, await fetched(query.get("images").split(","))) : null;
}

async function guarded(action) {
  try {
    return await action();
  } catch (error) {
    say(error.message, true);
    return { error: error.message };
  }
}

const results = await guarded(start);
if (results && query.has("report")) await post(JSON.stringify(results));
