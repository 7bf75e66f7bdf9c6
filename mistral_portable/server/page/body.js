// The body of a request for /v1/chat/completions, made of a conversation and the settings.

/** Settings that cannot be sent; the message says which. */
export class SettingsError extends Error {}

const NUMBERS = { temperature: "temperature", topP: "top_p", maxTokens: "max_tokens", seed: "seed" };

/** settings: texts of the form's fields; one that is empty is left to the server. Throws SettingsError. */
export function requestBody(messages, settings, model) {
  const body = {
    messages: history(messages, settings.system),
    stream: true,
    stream_options: { include_usage: true },
  };
  if (model) body.model = model;
  for (const [field, name] of Object.entries(NUMBERS)) {
    if (settings[field] === "") continue;
    const value = Number(settings[field]);
    if (!Number.isFinite(value)) throw new SettingsError(`${name} in the settings is no number: ${settings[field]}`);
    body[name] = value;
  }
  const schema = parseSchema(settings.schema);
  if (schema) {
    body.response_format = { type: "json_schema", json_schema: { name: "answer", strict: true, schema } };
  }
  return body;
}

/** The schema as an object, or null for an empty text. Throws SettingsError if it is no JSON object. */
export function parseSchema(text) {
  if (!text.trim()) return null;
  let schema;
  try {
    schema = JSON.parse(text);
  } catch (error) {
    throw new SettingsError(`The JSON schema in the settings is no JSON: ${error.message}`);
  }
  if (schema === null || typeof schema !== "object" || Array.isArray(schema)) {
    throw new SettingsError("The JSON schema in the settings must be an object: {...}");
  }
  return schema;
}

// Reasoning and calls are not sent again: models expect none of the former, and the latter want results, which the page
// has not. An answer of which nothing else is left is passed over.
function history(messages, system) {
  const sent = messages.filter(({ content }) => content).map(({ role, content }) => ({ role, content }));
  return system.trim() ? [{ role: "system", content: system }, ...sent] : sent;
}
