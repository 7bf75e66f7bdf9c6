// An answer, put together from the chunks of a stream of /v1/chat/completions.

/** finish: null while it runs, then OpenAI's finish_reason, or "stopped", "error", "interrupted". */
export function newAnswer() {
  return {
    role: "assistant",
    content: "",
    reasoning: "",
    toolCalls: [],
    finish: null,
    error: null,
    usage: null,
    timings: null,
  };
}

/** Add a chunk. Throws an Error with the server's message if the chunk is one. */
export function addChunk(answer, chunk) {
  if (chunk.error) throw new Error(chunk.error.message ?? "The server could not go on.");
  if (chunk.usage) answer.usage = chunk.usage;
  if (chunk.timings) answer.timings = chunk.timings;
  const choice = chunk.choices?.[0];
  if (!choice) return;
  const delta = choice.delta ?? {};
  answer.content += delta.content ?? "";
  // The server sends both names, for the clients of two other servers.
  answer.reasoning += delta.reasoning_content ?? delta.reasoning ?? "";
  for (const call of delta.tool_calls ?? []) addCall(answer, call);
  if (choice.finish_reason) answer.finish = choice.finish_reason;
}

function addCall(answer, { index = answer.toolCalls.length, id, function: piece = {} }) {
  answer.toolCalls[index] ??= { id: "", name: "", arguments: "" };
  const call = answer.toolCalls[index];
  if (id) call.id = id;
  call.name += piece.name ?? "";
  call.arguments += piece.arguments ?? "";
}

/** One line of figures: "120 tokens, 41.5 tokens/s, prompt of 300 tokens, 256 from the cache"; "" if none came. */
export function figures({ usage, timings }) {
  const made = usage?.completion_tokens ?? timings?.predicted_n;
  const cached = usage?.prompt_tokens_details?.cached_tokens ?? timings?.cache_n;
  const read = usage?.prompt_tokens;
  const speed = timings?.predicted_per_second;
  const parts = [];
  if (made !== undefined) parts.push(`${made} ${made === 1 ? "token" : "tokens"}`);
  if (Number.isFinite(speed)) parts.push(`${speed.toFixed(1)} tokens/s`);
  if (read !== undefined) parts.push(`prompt of ${read}`);
  if (cached !== undefined) parts.push(`${cached} from the cache`);
  return parts.join(" · ");
}

const ENDINGS = {
  length: "Cut off: the limit of tokens is reached.",
  stopped: "Stopped.",
  interrupted: "Interrupted: the page was left while this was written.",
};

/** Why an answer ended, if it did not end by itself; else "". */
export const ending = ({ finish }) => ENDINGS[finish] ?? "";
