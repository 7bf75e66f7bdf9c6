// Requests to the server that the page came from, with the key of this tab's session.

const KEY = "mistral-portable.key";

/** A refusal of the server, or that it could not be reached (status 0). */
export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

let askForKey = async () => false;

/** ask: called with whether a key was refused; stores one by `setKey`, and resolves to whether there is a new one. */
export function onUnauthorized(ask) {
  askForKey = ask;
}

export function setKey(key) {
  sessionStorage.setItem(KEY, key);
}

/** GET `path`, or POST `body` as JSON. Resolves to an ok Response; throws ApiError, or AbortError by `signal`. */
export async function request(path, body, signal) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    const response = await send(path, body, key, signal);
    if (response.ok) return response;
    if (response.status === 401 && (await askForKey(key !== null))) continue;
    throw new ApiError(await reason(response), response.status);
  }
}

async function send(path, body, key, signal) {
  const headers = {};
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  try {
    return await fetch(path, {
      method: body === undefined ? "GET" : "POST",
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server cannot be reached. Is it running?", 0);
  }
}

async function reason(response) {
  const text = await response.text();
  let message = text.slice(0, 300) || `The server answered with status ${response.status}.`;
  try {
    message = JSON.parse(text).error.message ?? message;
  } catch {
    // No JSON of ours: a proxy's page, say. Its beginning is shown.
  }
  const wait = response.headers.get("Retry-After");
  return response.status === 503 && wait ? `${message} (try again in ${wait} s)` : message;
}
