// Status: asks the server every second, and shows what it says.
"use strict";

const $ = (id) => document.getElementById(id);

function keyHeader() {
  const key = sessionStorage.getItem("grebe-key");
  return key ? { authorization: "Bearer " + key } : {};
}

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("grebe-key", $("key").value);
  $("key-form").hidden = true;
  poll();
});

function bytes(n) {
  for (const [unit, scale] of [["GB", 1e9], ["MB", 1e6], ["kB", 1e3]]) {
    if (n >= scale) return (n / scale).toFixed(n / scale < 10 ? 2 : n / scale < 100 ? 1 : 0) + " " + unit;
  }
  return Math.round(n) + " B";
}

function seconds(s) {
  return s < 90 ? Math.round(s) + " s" : s < 5400 ? Math.round(s / 60) + " min" : (s / 3600).toFixed(1) + " h";
}

function pairs(id, rows) {
  const items = [];
  for (const [name, value] of rows) {
    if (value === undefined || value === null || value === "") continue;
    const dt = document.createElement("dt"), dd = document.createElement("dd");
    dt.textContent = name;
    dd.textContent = String(value);
    items.push(dt, dd);
  }
  $(id).replaceChildren(...items);
}

let before = null; // the last answer and when it came, for rates

function rates(stats, now) {
  const last = before;
  before = { stats, now };
  if (!last || now - last.now < 0.2) return {};
  const dt = now - last.now;
  const per = (key) => Math.max(0, ((stats[key] || 0) - (last.stats[key] || 0)) / dt);
  return { decode: per("completion_tokens"), prefill: per("prefilled_tokens") };
}

function show(stats) {
  const model = stats.model || {};
  $("model").textContent = [model.id, model.backend].filter(Boolean).join(" · ");
  $("state").textContent = stats.status === "ok" ? "ready" : stats.status;
  $("state").className = stats.status === "ok" ? "" : "bad";
  const rate = rates(stats, performance.now() / 1000);
  pairs("now", [
    ["decode", rate.decode === undefined ? "-" : rate.decode.toFixed(1) + " tok/s"],
    ["prefill", rate.prefill === undefined ? "-" : rate.prefill.toFixed(0) + " tok/s"],
    ["running", stats.n_running],
    ["waiting", stats.n_waiting],
    ["context", stats.n_ctx],
  ]);
  $("running").replaceChildren(...(stats.running || []).map(request));
  if (!(stats.running || []).length) $("running").textContent = "none";
  $("sessions").tBodies[0].replaceChildren(...(stats.sessions || []).map((session) => {
    const row = document.createElement("tr");
    if (session.busy) row.className = "busy";
    for (const text of [session.tokens, bytes(session.bytes), session.busy ? "now" : seconds(session.idle_s)]) {
      row.insertCell().textContent = String(text);
    }
    return row;
  }));
  const share = stats.prompt_tokens ? Math.round(100 * stats.cached_tokens / stats.prompt_tokens) + " %" : "-";
  pairs("totals", [
    ["requests", stats.jobs],
    ["prompt tokens", stats.prompt_tokens],
    ["  known already", share],
    ["sampled tokens", stats.completion_tokens],
    ["up", stats.uptime_s === undefined ? "" : seconds(stats.uptime_s)],
    ["last error", stats.last_error],
  ]);
  const cache = stats.cache;
  pairs("cache", cache ? [
    ["on disk", bytes(cache.disk_bytes)],
    ["in memory", bytes(cache.ram_bytes)],
    ["found", cache.hits + " of " + cache.lookups],
    ["written", bytes(cache.bytes_written)],
    ["last error", cache.last_error],
  ] : [["off", "grebe serve --cache-dir DIR"]]);
}

function request(job) {
  const box = document.createElement("div");
  const label = document.createElement("div");
  box.append(label);
  if (job.read_tokens < job.prompt_tokens) {
    const bar = document.createElement("progress");
    bar.max = job.prompt_tokens;
    bar.value = job.read_tokens;
    box.append(bar);
    label.textContent = "reading " + job.read_tokens + " of " + job.prompt_tokens;
  } else {
    label.textContent = "writing: " + job.completion_tokens + " after " + job.prompt_tokens;
  }
  return box;
}

let timer = 0;

async function poll() {
  clearTimeout(timer);
  try {
    const answer = await fetch("status", { headers: keyHeader() });
    if (answer.status === 401) {
      $("key-form").hidden = false;
      $("state").textContent = "an API key is needed";
      return;
    }
    show(await answer.json());
  } catch {
    $("state").textContent = "no connection";
    $("state").className = "bad";
  }
  timer = setTimeout(poll, document.hidden ? 10000 : 1000);
}

document.addEventListener("visibilitychange", () => { if (!document.hidden) poll(); });
poll();
