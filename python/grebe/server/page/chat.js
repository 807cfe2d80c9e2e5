// Chat: /v1/chat/completions, streamed. What the model writes is shown as text, never as HTML.
"use strict";

const history = [];
let running = null; // AbortController of the answer under way

// Whoever has scrolled back is left there.
function atEnd() {
  const box = $("messages");
  return box.scrollHeight - box.scrollTop - box.clientHeight < 40;
}

function toEnd() {
  $("messages").scrollTop = $("messages").scrollHeight;
}

function bubble(kind, text) {
  const box = document.createElement("div");
  box.className = "message " + kind;
  box.textContent = text;
  $("messages").append(box);
  toEnd();
  return box;
}

function answerBox() {
  const box = bubble("assistant", "");
  const details = document.createElement("details");
  const summary = document.createElement("summary");
  const thinking = document.createElement("div");
  const content = document.createElement("div");
  const note = document.createElement("div");
  summary.textContent = "thinking";
  note.className = "note";
  details.append(summary, thinking);
  details.hidden = true;
  box.append(details, content, note);
  return { box, details, thinking, content, note };
}

// One object per event of the stream; [DONE] ends it.
async function* events(body) {
  const decoder = new TextDecoder();
  const reader = body.getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) throw new Error("the connection broke");
    rest += decoder.decode(value, { stream: true });
    const lines = rest.split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data: ")) continue;
      if (line === "data: [DONE]") return;
      yield JSON.parse(line.slice(6));
    }
  }
}

async function ask(text) {
  history.push({ role: "user", content: text });
  bubble("user", text);
  const view = answerBox();
  toEnd();
  const message = { role: "assistant", content: "" };
  running = new AbortController();
  $("send").hidden = true;
  $("stop").hidden = false;
  view.note.textContent = "reading the prompt";
  const begin = performance.now();
  let usage = null, first = 0;
  try {
    const answer = await fetch("v1/chat/completions", {
      method: "POST",
      headers: { "content-type": "application/json", ...keyHeader() },
      signal: running.signal,
      body: JSON.stringify({
        model: "default", messages: history, stream: true, stream_options: { include_usage: true },
        max_tokens: Math.max(1, Number($("limit").value) || 1024),
        thinking: { type: $("think").checked ? "enabled" : "disabled" },
      }),
    });
    if (!answer.ok) throw new Error((await answer.json()).error.message);
    for await (const chunk of events(answer.body)) {
      if (chunk.error) throw new Error(chunk.error.message);
      if (chunk.usage) usage = chunk.usage;
      const delta = chunk.choices && chunk.choices[0] ? chunk.choices[0].delta : null;
      if (!delta) continue;
      const follow = atEnd();
      if (delta.reasoning_content) {
        message.reasoning_content = (message.reasoning_content || "") + delta.reasoning_content;
        view.thinking.textContent = message.reasoning_content;
        view.details.hidden = false;
      }
      if (delta.content) {
        message.content += delta.content;
        view.content.textContent = message.content;
      }
      if (delta.content || delta.reasoning_content) {
        first = first || performance.now();
        view.note.textContent = "";
        if (follow) toEnd();
      }
    }
  } catch (error) {
    if (error.name === "AbortError") view.note.textContent = "stopped";
    else { view.note.textContent = error.message; view.note.classList.add("error"); }
  }
  history.push(message);
  if (usage) {
    const known = (usage.prompt_tokens_details || {}).cached_tokens || 0;
    const rate = usage.completion_tokens / Math.max(0.001, (performance.now() - (first || begin)) / 1000);
    view.note.textContent = usage.prompt_tokens + " tokens read, " + known + " of them known; "
      + usage.completion_tokens + " written, " + rate.toFixed(1) + " tok/s";
  }
  toEnd();
  running = null;
  $("send").hidden = false;
  $("stop").hidden = true;
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("text").value.trim();
  if (!text || running) return;
  $("text").value = "";
  ask(text);
});
$("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("ask").requestSubmit();
  }
});
$("stop").addEventListener("click", () => { if (running) running.abort(); });
$("clear").addEventListener("click", () => {
  if (running) return;
  history.length = 0;
  $("messages").replaceChildren();
});
