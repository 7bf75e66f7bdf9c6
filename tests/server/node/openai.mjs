// Asks a server with OpenAI's client, and prints what the client makes of the answers as JSON: node openai.mjs URL CASE
import OpenAI from "openai";

const [url, name] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "any", maxRetries: name === "retries" ? 5 : 0 });
const messages = [{ role: "user", content: "Tom has a red ball. What color is the ball?" }];
const greedy = { model: "any", messages, temperature: 0 };
const parameters = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const asked = [];
const weather = {
  type: "function",
  function: {
    name: "weather",
    description: "The weather of a city",
    parameters,
    parse: JSON.parse,
    function: ({ city }) => {
      asked.push(city);
      return `Rain in ${city}`;
    },
  },
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
    return { kind: error.constructor.name, status: error.status, type: error.type, code: error.code, message: error.message };
  }
  throw new Error("nothing was refused");
}

const cases = {
  async chat() {
    const answer = await client.chat.completions.create(greedy);
    const [{ message, finish_reason }] = answer.choices;
    return { content: message.content, role: message.role, finish_reason, usage: answer.usage };
  },

  async stream() {
    const stream = client.chat.completions.stream({ ...greedy, stream_options: { include_usage: true } });
    let content = "";
    stream.on("content", (delta) => (content += delta));
    const answer = await stream.finalChatCompletion();
    const [{ message, finish_reason }] = answer.choices;
    return { content, role: message.role, finish_reason, usage: answer.usage, same: content === message.content };
  },

  async left() {
    const stream = await client.completions.create({
      model: "any",
      prompt: "Once",
      max_tokens: 30000,
      stream: true,
      ignore_eos: true,
    });
    for await (const chunk of stream) return { text: chunk.choices[0].text }; // the client aborts the request
  },

  async tools() {
    const runner = client.chat.completions.runTools({ ...greedy, tools: [weather] });
    return { content: await runner.finalContent(), asked };
  },

  async streamed_tools() {
    const runner = client.chat.completions.runTools({ ...greedy, tools: [weather], stream: true });
    return { content: await runner.finalContent(), asked };
  },

  async schema() {
    const answer = await client.chat.completions.parse({
      model: "any",
      messages,
      response_format: { type: "json_schema", json_schema: { name: "ball", strict: true, schema: color } },
    });
    return JSON.parse(answer.choices[0].message.content);
  },

  async responses() {
    const stream = client.responses.stream({ model: "any", input: messages[0].content, temperature: 0 });
    let content = "";
    stream.on("response.output_text.delta", (event) => (content += event.delta));
    const answer = await stream.finalResponse();
    return { content, status: answer.status, same: content === answer.output_text };
  },

  async models() {
    const models = [];
    for await (const model of client.models.list()) models.push(model.id);
    return models;
  },

  async refused() {
    const long = [{ role: "user", content: "word ".repeat(40000) }];
    return [
      await refusal(() => client.chat.completions.create({ ...greedy, temperature: "hot" })),
      await refusal(() => client.chat.completions.create({ ...greedy, messages: long, stream: true })),
      await refusal(() => client.models.retrieve("gpt")),
    ];
  },

  async retries() {
    return (await client.chat.completions.create(greedy)).choices[0].message.content;
  },
};

console.log(JSON.stringify(await cases[name]()));
