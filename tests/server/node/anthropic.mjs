// Asks a server with Anthropic's client, and prints what the client makes of the answers as JSON: node anthropic.mjs URL CASE
import Anthropic from "@anthropic-ai/sdk";

const [url, name] = process.argv.slice(2);
const client = new Anthropic({ baseURL: url, apiKey: "any", maxRetries: name === "retries" ? 5 : 0 });
const messages = [{ role: "user", content: "Tom has a red ball. What color is the ball?" }];
const greedy = { model: "any", max_tokens: 50, messages, temperature: 0 };
const weather = {
  name: "weather",
  description: "The weather of a city",
  input_schema: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
};
const color = {
  type: "object",
  properties: { color: { enum: ["red", "white"] } },
  required: ["color"],
  additionalProperties: false,
};

async function refusal(call) {
  try {
    await call();
  } catch (error) {
    return { kind: error.constructor.name, status: error.status, type: error.error?.error?.type, message: error.message };
  }
  throw new Error("nothing was refused");
}

// The answer to a question, the tool that it calls, and the answer to the tool's result.
async function toolLoop(ask) {
  const turns = [...messages];
  const first = await ask({ ...greedy, messages: turns, tools: [weather] });
  const calls = first.content.filter((block) => block.type === "tool_use");
  turns.push({ role: "assistant", content: first.content });
  turns.push({
    role: "user",
    content: calls.map((call) => ({ type: "tool_result", tool_use_id: call.id, content: `Rain in ${call.input.city}` })),
  });
  const second = await ask({ ...greedy, messages: turns, tools: [weather] });
  return {
    content: second.content.map((block) => block.text).join(""),
    asked: calls.map((call) => call.input.city),
    stop_reason: first.stop_reason,
  };
}

const cases = {
  async chat() {
    const { content, role, stop_reason, usage } = await client.messages.create(greedy);
    return { content: content[0].text, role, stop_reason, usage };
  },

  async stream() {
    const stream = client.messages.stream(greedy);
    let text = "";
    stream.on("text", (delta) => (text += delta));
    const { content, role, stop_reason, usage } = await stream.finalMessage();
    return { content: text, role, stop_reason, usage, same: text === content[0].text };
  },

  async left() {
    const stream = await client.messages.create({ ...greedy, max_tokens: 30000, stream: true });
    for await (const event of stream) return { type: event.type }; // the client aborts the request
  },

  async tools() {
    return toolLoop((body) => client.messages.create(body));
  },

  async streamed_tools() {
    return toolLoop((body) => client.messages.stream(body).finalMessage());
  },

  async schema() {
    const answer = await client.messages.create({
      model: "any",
      max_tokens: 100,
      messages,
      output_config: { format: { type: "json_schema", schema: color } },
    });
    return JSON.parse(answer.content[0].text);
  },

  async count() {
    return (await client.messages.countTokens({ model: "any", messages })).input_tokens;
  },

  async models() {
    const models = [];
    for await (const model of client.models.list()) models.push(model.id);
    return models;
  },

  async refused() {
    const long = [{ role: "user", content: "word ".repeat(40000) }];
    return [
      await refusal(() => client.messages.create({ ...greedy, temperature: "hot" })),
      await refusal(() => client.messages.create({ ...greedy, messages: long, stream: true })),
      await refusal(() => client.models.retrieve("gpt")),
    ];
  },

  async retries() {
    return (await client.messages.create(greedy)).content[0].text;
  },
};

console.log(JSON.stringify(await cases[name]()));
