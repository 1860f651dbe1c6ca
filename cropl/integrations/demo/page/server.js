// What the page asks of its server. No other host is ever contacted.

const GONE = "The server does not answer: is `cropl demo` still running?";

async function reach(address, options) {
  let reply;
  try {
    reply = await fetch(address, options);
  } catch (error) {
    throw error.name === "AbortError" ? error : new Error(GONE);
  }
  if (!reply.ok) {
    const told = await reply.json().catch(() => ({}));
    throw new Error(told.error ?? `The server failed (status ${reply.status}); its terminal says why.`);
  }
  return reply;
}

/** Models, methods and example pictures. */
export async function getState() {
  return (await reach("/api/state")).json();
}

/** What the server makes of a file: its id, size, tokens. */
export async function sendPicture(file) {
  const address = `/api/pictures?name=${encodeURIComponent(file.name.slice(0, 80))}`;
  return (await reach(address, { method: "POST", body: file })).json();
}

export function address(picture, small = false) {
  return `/api/pictures/${picture.id}${small ? "?small" : ""}`;
}

/** What happens to a question, as it happens; an error that comes on the way is thrown. */
export async function* ask(question, signal) {
  const reply = await reach("/api/ask", { method: "POST", body: JSON.stringify(question), signal });
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n");
    rest = parts.pop();
    for (const part of parts) {
      const event = JSON.parse(part);
      if (event.error) throw new Error(event.error);
      yield event;
    }
  }
}
