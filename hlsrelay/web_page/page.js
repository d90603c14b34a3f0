// The relay's page: what every stream is doing, and a player for one of them. No build step, no framework.
// window.hlsrelayPlayback holds the figures of the current playback; tests/acceptance/browser.py reads them.

const POLL_MS = 2000;
const SAMPLE_MS = 100;
const STALL_S = 0.25; // how long the picture stands before that counts as a stall
const JUMP_S = 0.5; // how far the position and the clock may part between two samples before that counts as a jump
const RETRY_MS = 2000;

const byId = (id) => document.getElementById(id);
const video = byId("video");
const Hls = window.Hls;
const PLAYER =
  Hls && Hls.isSupported() ? "hls.js" : video.canPlayType("application/vnd.apple.mpegurl") ? "native" : "none";

let streams = new Map();
let chosen = fromHash();
let loaded = ""; // the URL in the player
let hls = null;
let retry = 0;

function fromHash() {
  const text = location.hash.slice(1);
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

// ---------------------------------------------------------------- figures

function newFigures(stream) {
  return {
    player: PLAYER === "hls.js" ? `hls.js ${Hls.version}` : PLAYER,
    stream,
    begun_ms: performance.now(),
    startup_s: null,
    played_s: 0,
    stalls: [], // {at_s, duration_s}: the picture stood
    stalling_s: 0, // the stall that is going on
    buffer_stalls: 0, // hls.js says that the buffer ran dry
    jumps: [], // {at_s, by_s}: the position moved otherwise than by playing
    fatal: [],
    errors: {}, // what hls.js met and got over: details -> how often
    levels: [], // {at_s, index, height, bitrate, name}: quality, each time it changed on screen
  };
}

let figures = newFigures("");
let last = null;

window.hlsrelayPlayback = {
  get report() {
    const quality = video.getVideoPlaybackQuality ? video.getVideoPlaybackQuality() : {};
    return {
      ...figures,
      current_time_s: video.currentTime,
      playing: figures.startup_s !== null && !video.paused && !video.ended && figures.stalling_s === 0,
      buffered_s: buffered(),
      latency_s: latency(),
      width: video.videoWidth,
      height: video.videoHeight,
      decoded_frames: quality.totalVideoFrames ?? 0,
      dropped_frames: quality.droppedVideoFrames ?? 0,
      choices: hls ? hls.levels.map(describe) : [],
    };
  },
  setLevel(index) {
    choose(index);
  },
};

function sample() {
  const now_s = performance.now() / 1000;
  const here = { now_s, at_s: video.currentTime };
  const moved = last !== null && here.at_s !== last.at_s;
  if (video.paused || video.seeking || video.ended || loaded === "") {
    if (figures.stalling_s) figures.stalls.push({ at_s: last.at_s, duration_s: figures.stalling_s }); // it ended in a leap
    last = null;
    figures.stalling_s = 0;
    return;
  }
  if (last === null) {
    last = { ...here, since_s: now_s };
    return;
  }
  if (!moved) {
    figures.stalling_s = figures.startup_s !== null && now_s - last.since_s > STALL_S ? now_s - last.since_s : 0;
    last = { ...here, since_s: last.since_s };
    return;
  }
  if (figures.startup_s === null) {
    figures.startup_s = (performance.now() - figures.begun_ms) / 1000;
  } else {
    const stood_s = last.now_s - last.since_s;
    if (stood_s > STALL_S) {
      figures.stalls.push({ at_s: last.at_s, duration_s: stood_s });
    }
    const by_s = here.at_s - last.at_s - (now_s - last.now_s) * video.playbackRate;
    if (Math.abs(by_s) > JUMP_S) {
      figures.jumps.push({ at_s: last.at_s, by_s });
    } else {
      figures.played_s += here.at_s - last.at_s;
    }
  }
  figures.stalling_s = 0;
  last = { ...here, since_s: now_s };
}

video.addEventListener("seeking", () => {
  if (figures.startup_s !== null && last !== null) {
    figures.jumps.push({ at_s: last.at_s, by_s: video.currentTime - last.at_s });
  }
});

function buffered() {
  for (let i = 0; i < video.buffered.length; i += 1) {
    if (video.buffered.start(i) - 0.1 <= video.currentTime && video.currentTime <= video.buffered.end(i)) {
      return video.buffered.end(i) - video.currentTime;
    }
  }
  return 0;
}

function latency() {
  if (hls) {
    return hls.latency || null;
  }
  const { seekable } = video;
  const behind_s = seekable.length ? seekable.end(seekable.length - 1) - video.currentTime : NaN;
  return Number.isFinite(behind_s) ? behind_s : null; // some browsers call the edge of a live stream infinity
}

// ---------------------------------------------------------------- the player

function describe(level) {
  const height = level.height || 0;
  return { name: level.name || (height ? `${height}p` : "audio"), height, bitrate: level.bitrate || 0 };
}

function play(url) {
  unload();
  loaded = url;
  figures = newFigures(chosen);
  video.muted = true; // else browsers refuse to start by themselves
  if (PLAYER === "hls.js") {
    hls = new Hls({ backBufferLength: 30 }); // else its defaults: what plays here plays on anybody's page
    hls.on(Hls.Events.MANIFEST_PARSED, showChoices);
    hls.on(Hls.Events.LEVELS_UPDATED, showChoices);
    hls.on(Hls.Events.LEVEL_SWITCHED, (_, data) => {
      figures.levels.push({ at_s: video.currentTime, index: data.level, ...describe(hls.levels[data.level]) });
    });
    hls.on(Hls.Events.ERROR, (_, data) => onHlsError(data));
    hls.on(Hls.Events.FRAG_BUFFERED, keepChoice);
    hls.loadSource(url);
    hls.attachMedia(video);
  } else if (PLAYER === "native") {
    video.src = url;
  } else {
    notice("This browser can't play HLS by itself, and hls.js isn't installed on this relay: run make install where npm is there, or open the playlist below in another player.");
    return;
  }
  notice("Loading …");
  video.play().catch(() => {}); // refused: the controls are there
}

function unload() {
  clearTimeout(retry);
  if (hls) {
    hls.destroy();
    hls = null;
  }
  if (loaded) {
    video.removeAttribute("src");
    video.load();
  }
  loaded = "";
  last = null;
  showChoices();
}

function onHlsError(data) {
  if (data.details === Hls.ErrorDetails.BUFFER_STALLED_ERROR) {
    figures.buffer_stalls += 1;
  }
  if (!data.fatal) {
    figures.errors[data.details] = (figures.errors[data.details] ?? 0) + 1;
    return;
  }
  failed(data.details);
  if (data.type === Hls.ErrorTypes.MEDIA_ERROR && figures.fatal.length === 1) {
    hls.recoverMediaError();
  } else {
    again();
  }
}

function failed(what) {
  figures.fatal.push(what);
  notice(`The player stopped (${what}). Trying again …`);
}

function again() {
  const url = loaded;
  clearTimeout(retry);
  retry = setTimeout(() => {
    const { fatal } = figures;
    play(url);
    figures.fatal = fatal; // what went wrong stays on the record
  }, RETRY_MS);
}

video.addEventListener("error", () => {
  if (PLAYER === "native" && loaded) {
    failed(video.error ? `media error ${video.error.code}` : "media error");
    again();
  }
});
video.addEventListener("resize", () => {
  if (PLAYER === "native" && video.videoHeight) {
    figures.levels.push({ at_s: video.currentTime, index: -1, ...describe({ height: video.videoHeight }) });
  }
});
video.addEventListener("playing", () => notice(""));
video.addEventListener("ended", () => notice("This stream has ended."));

function choose(index) {
  if (hls) {
    hls.nextLevel = index; // from the next segment on; what is on screen goes on
    byId("quality").value = String(index);
  }
}

// At a GAP (or any error) in the chosen quality hls.js fills in from another and goes back to choosing by itself; the viewer's choice holds
// again once that is past.
function keepChoice() {
  const index = Number(byId("quality").value);
  if (index >= 0 && hls.autoLevelEnabled) hls.loadLevel = index;
}

function showChoices() {
  const select = byId("quality");
  const kept = select.value;
  const auto = new Option(PLAYER === "native" ? "By the browser" : "Auto", "-1");
  const levels = hls ? hls.levels.map((level, index) => [describe(level), index]) : [];
  levels.sort(([a], [b]) => b.bitrate - a.bitrate);
  select.replaceChildren(auto, ...levels.map(([level, index]) => new Option(`${level.name} · ${rate(level.bitrate)}`, index)));
  select.value = hls && levels.some(([, index]) => String(index) === kept) ? kept : "-1";
  select.disabled = levels.length < 2;
}

byId("quality").addEventListener("change", (event) => choose(Number(event.target.value)));

function notice(text, link) {
  const place = byId("notice");
  place.replaceChildren(...(text ? [text, ...(link ? [link] : [])] : []));
  place.hidden = !text;
  video.controls = loaded !== "";
}

// ---------------------------------------------------------------- what is shown

const rate = (bps) => (bps >= 1e6 ? `${(bps / 1e6).toFixed(1)} Mb/s` : `${Math.round(bps / 1e3)} kb/s`);
const seconds = (s) => `${s.toFixed(1)} s`;

function ago(iso) {
  const s = (Date.now() - Date.parse(iso)) / 1000;
  if (!Number.isFinite(s)) return iso;
  if (s < 60) return `${Math.max(0, Math.round(s))} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

const MOODS = { running: "good", failed: "bad", backoff: "bad", registered: "wait", claimed: "wait", draining: "wait" };
const mood = (stream) => (stream.state === "running" && stream.last_error ? "wait" : (MOODS[stream.state] ?? ""));

function figure(id, text, small = "", bad = false) {
  const place = byId(id);
  const note = document.createElement("small");
  note.textContent = small ? ` ${small}` : "";
  place.replaceChildren(text, note);
  place.classList.toggle("bad", bad);
}

function showFigures() {
  const now = window.hlsrelayPlayback.report;
  const level = figures.levels.at(-1);
  const shown = now.height ? `${now.height}p` : "–";
  const stood_s = figures.stalls.reduce((sum, stall) => sum + stall.duration_s, now.stalling_s);
  const stalls = figures.stalls.length + (now.stalling_s ? 1 : 0);
  figure("f-latency", now.latency_s === null || figures.startup_s === null ? "–" : seconds(now.latency_s));
  figure("f-level", shown, level?.bitrate ? rate(level.bitrate) : "");
  figure("f-buffer", loaded ? seconds(now.buffered_s) : "–");
  figure("f-stalls", loaded ? String(stalls) : "–", stalls ? seconds(stood_s) : "", stalls > 0);
  figure("f-dropped", now.decoded_frames ? String(now.dropped_frames) : "–", now.decoded_frames ? `of ${now.decoded_frames}` : "");
  figure("f-startup", figures.startup_s === null ? "–" : seconds(figures.startup_s));
}

function part(tag, name, text) {
  const element = document.createElement(tag);
  element.className = name;
  element.textContent = text;
  return element;
}

function facts(stream) {
  const said = [];
  if (stream.last_sequence !== null) said.push(`segment ${stream.last_sequence}`);
  if (stream.lag_s !== null) said.push(`${stream.lag_s.toFixed(1)} s behind source`);
  if (stream.ladder) said.push(stream.ladder.replaceAll(",", ", "));
  if (stream.node) said.push(`on ${stream.node}`);
  return said;
}

function row(stream) {
  const item = document.createElement("li");
  const button = part("button", "stream", "");
  button.type = "button";
  button.dataset.id = stream.id;
  button.addEventListener("click", () => select(stream.id));
  item.append(button);
  return item;
}

function fill(item, stream) {
  const button = item.firstElementChild;
  const state = part("span", "state", stream.since ? `${stream.state} ${ago(stream.since)}` : stream.state);
  state.title = stream.since ? `since ${stream.since}` : "";
  const line = part("span", "facts", "");
  line.append(...facts(stream).map((text) => part("span", "", text)));
  const children = [part("span", `dot ${mood(stream)}`, ""), part("span", "id", stream.id), state];
  if (line.childElementCount) children.push(line);
  if (stream.ladder_trouble) children.push(part("span", "ladder", `ladder ${stream.ladder_trouble}`));
  if (stream.last_error) children.push(part("span", "error", stream.last_error));
  button.replaceChildren(...children);
  button.setAttribute("aria-current", String(stream.id === chosen));
}

function showList() {
  const list = byId("streams");
  const wanted = byId("filter").value.trim().toLowerCase();
  const rows = new Map([...list.children].map((item) => [item.firstElementChild.dataset.id, item]));
  const shown = [...streams.values()].filter((stream) => `${stream.id} ${stream.state} ${stream.node}`.toLowerCase().includes(wanted));
  let before = list.firstElementChild;
  for (const stream of shown) {
    const item = rows.get(stream.id) ?? row(stream);
    rows.delete(stream.id);
    fill(item, stream);
    if (item === before) before = before.nextElementSibling;
    else list.insertBefore(item, before); // only what is new moves: focus and scrolling stay
  }
  rows.forEach((item) => item.remove());
  byId("filter").hidden = streams.size < 8;
  byId("none").hidden = shown.length > 0;
}

function showSummary() {
  const count = new Map(Object.keys(MOODS).map((state) => [state, 0])); // in this order
  for (const { state } of streams.values()) count.set(state, (count.get(state) ?? 0) + 1);
  const words = [...count].filter(([, number]) => number).map(([state, number]) => {
    const word = part("span", "", "");
    word.append(part("span", `dot ${MOODS[state] ?? ""}`, ""), `${number} ${state}`);
    return word;
  });
  const place = byId("summary");
  const text = words.map((word) => word.textContent).join();
  if (place.dataset.text !== text) place.replaceChildren(...words); // else a screen reader would read it out every time
  place.dataset.text = text;
}

function progress(child) {
  const said = [];
  if (child.frame !== null) said.push(`frame ${child.frame}`);
  if (child.out_time_s !== null) said.push(`at ${child.out_time_s.toFixed(2)} s`);
  if (child.speed !== null) said.push(`${child.speed}×`);
  return said.join(", ");
}

function showProcesses({ nodes, processes }) {
  const short = nodes.filter((node) => node.pressed).map((node) => `${node.node} (${node.memory_percent} % in use)`);
  const text = short.length ? `Memory is short on ${short.join(", ")}: no ladder job starts, what is running is stopped, oldest first.` : "";
  if (byId("pressed").textContent !== text) byId("pressed").textContent = text;
  byId("pressed").hidden = !text;
  const known = (value, shown) => (value === null ? "" : shown(value));
  const rows = processes.map((child) => {
    const command = child.argv.join(" ");
    const cells = [
      child.worker ? `${child.purpose}, by ${child.worker}` : child.purpose,
      child.node,
      String(child.pid || ""),
      known(child.age_s, seconds),
      known(child.cpu_s, (s) => `${s.toFixed(2)} s`),
      known(child.rss_bytes, (bytes) => `${Math.round(bytes / 2 ** 20)} MiB`),
      progress(child),
      command,
    ].map((cell) => part("td", "", cell));
    cells.at(-1).title = command;
    const line = document.createElement("tr");
    line.append(...cells);
    return line;
  });
  byId("children").replaceChildren(...rows);
  byId("processes").hidden = !rows.length && !text;
}

function showChosen() {
  const stream = streams.get(chosen);
  byId("now").textContent = chosen || "\u00a0";
  byId("about").textContent = stream ? [stream.source && `from ${stream.source}`, stream.since && `since ${new Date(stream.since).toLocaleString()}`].filter(Boolean).join(", ") : "";
  const url = stream?.playing_url ? new URL(stream.playing_url, location.href) : null;
  byId("url").value = url ? url.href : "";
  document.querySelector("[data-copy=url]").disabled = !url;
  document.title = chosen ? `${chosen} · hlsrelay` : "hlsrelay";
  if (url && url.href === loaded) return;
  if (!stream) {
    unload();
    notice(chosen ? `There is no stream called ${chosen}.` : "Choose a stream.");
  } else if (!url) {
    unload();
    notice(stream.desired === "stop" ? `${chosen} is stopped.` : stream.last_error || `${chosen} has nothing to play yet.`);
  } else if (url.origin !== location.origin) {
    unload();
    const link = part("a", "", "Open its page");
    link.href = `${url.origin}/#${encodeURIComponent(chosen)}`;
    notice(`${chosen} is served by ${url.host}. `, link);
  } else {
    play(url.href);
  }
}

function select(id) {
  chosen = id;
  if (location.hash.slice(1) !== encodeURIComponent(id)) history.replaceState(null, "", `#${encodeURIComponent(id)}`);
  byId("quality").value = "-1";
  showList();
  showChosen();
}

window.addEventListener("hashchange", () => select(fromHash()));
byId("filter").addEventListener("input", showList);

// ---------------------------------------------------------------- asking the relay

let timer = 0;

async function poll() {
  clearTimeout(timer);
  try {
    const answer = await fetch("/api/streams", { cache: "no-store" });
    if (!answer.ok) throw new Error((await answer.text()).trim());
    streams = new Map((await answer.json()).streams.map((stream) => [stream.id, stream]));
    const told = await fetch("/api/processes", { cache: "no-store" });
    if (told.ok) showProcesses(await told.json());
    byId("trouble").hidden = true;
    if (!chosen) {
      chosen = [...streams.values()].find((stream) => stream.state === "running" && stream.playing_url)?.id ?? "";
    }
    byId("main").hidden = streams.size === 0;
    byId("empty").hidden = streams.size > 0;
    showSummary();
    showList();
    showChosen();
  } catch (error) {
    byId("trouble").textContent = `The relay doesn't answer (${error.message}). What is shown may be old; trying again …`;
    byId("trouble").hidden = false;
  }
  if (!document.hidden) timer = setTimeout(poll, POLL_MS);
}

document.addEventListener("visibilitychange", () => {
  if (!document.hidden) poll();
});

for (const button of document.querySelectorAll("button.copy")) {
  button.addEventListener("click", async () => {
    const place = byId(button.dataset.copy);
    const text = place.value ?? place.textContent;
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      // no clipboard without HTTPS: select it, the keyboard does the rest
      if (place.select) place.select();
      else window.getSelection().selectAllChildren(place);
      button.textContent = "Selected";
    }
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
}

byId("player-name").textContent = {
  "hls.js": `Plays with hls.js ${Hls?.version}.`,
  native: "Plays with the browser's own HLS (hls.js isn't installed here).",
  none: "This browser has no HLS of its own, and hls.js isn't installed here.",
}[PLAYER];
byId("licence").hidden = !Hls;
setInterval(sample, SAMPLE_MS);
setInterval(showFigures, 500);
poll();
