// Drive a server with one generation of the official TypeScript client; print what was seen as JSON.
//
//   node driver.mjs INSTALLED SDK lifecycle URL          the whole life cycle; expects the scripted upstream
//   node driver.mjs INSTALLED SDK faults URL COUNTS      each call fails as often as COUNTS says, then works
//   node driver.mjs INSTALLED SDK create URL CUSTOM_ID   one batch, as an application makes it
//
// INSTALLED is the folder that holds node_modules, SDK the name of the client in it. The twin of
// `driver.py`: it prints the same, and asserts nothing.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

const [installed, sdk, command, url, ...rest] = process.argv.slice(2);
const require = createRequire(path.resolve(installed, "package.json"));
const Anthropic = require(sdk).default;
// Its package does not export this file.
const { version } = JSON.parse(readFileSync(path.join(installed, "node_modules", sdk, "package.json")));

const DEADLINE_MS = 60_000;
const BETAS = ["output-300k-2026-03-24", "message-batches-2024-09-24", "output-300k-2026-03-24"];

const report = (value) => process.stdout.write(`${JSON.stringify(value)}\n`);

function request(prompt) {
  return {
    custom_id: prompt.split("|", 1)[0],
    params: { model: "scripted", max_tokens: 100, messages: [{ role: "user", content: prompt }] },
  };
}

/** Return all that a stream holds, or all pages of a list. */
async function everything(value) {
  const found = [];
  for await (const item of await value) found.push(item);
  return found;
}

/** Return what a user of the client would look at in each result. */
function shown(lines) {
  const found = {};
  for (const { custom_id, result } of lines) {
    let value = [];
    if (result.type === "succeeded") {
      const { content, stop_reason, usage } = result.message;
      value = [content[0].text, stop_reason, usage.service_tier];
    } else if (result.type === "errored") {
      value = [result.error.type, result.error.error.type, result.error.error.message];
    }
    found[custom_id] = [result.type, ...value];
  }
  return found;
}

/** Return the class of the error that a call throws, and what the client read of it. */
async function failure(call) {
  try {
    await call();
  } catch (error) {
    if (error.status === undefined) return [error.constructor.name, error.message];
    const header = error.headers.get?.("request-id") ?? error.headers["request-id"];
    // The oldest generation calls it `request_id`.
    const id = error.requestID ?? error.request_id;
    const body = error.error;
    return [
      error.constructor.name,
      error.status,
      body.error.type,
      body.error.message,
      id !== undefined && id === header && id === body.request_id,
    ];
  }
  return [];
}

async function waitEnded(batches, id) {
  const end = Date.now() + DEADLINE_MS;
  for (;;) {
    const batch = await batches.retrieve(id);
    if (batch.processing_status === "ended") return batch;
    if (Date.now() > end) throw new Error(`${id} has not ended`);
    await sleep(10);
  }
}

/** Take one namespace of the client through its calls. */
async function drive(batches, name, extra) {
  const seen = {};
  const create = (...prompts) => batches.create({ requests: prompts.map(request), ...extra });
  const ids = (list) => list.map((batch) => batch.id);
  const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);

  const created = await create(`${name}-1`, `${name}-2`, `${name}-bad|400`);
  seen.created = { ...created };
  seen["request id"] = created._request_id;
  const ended = await waitEnded(batches, created.id);
  seen.ended = { ...ended };
  seen.types = [ended.constructor.name, ended.ended_at.constructor.name];
  seen.results = shown(await everything(batches.results(created.id)));

  const held = await create(`${name}-held|hold:${name}`, `${name}-x|429:900`);
  seen.early = await failure(() => batches.results(held.id));
  seen["early delete"] = await failure(() => batches.delete(held.id));
  const canceled = await batches.cancel(held.id);
  const again = await batches.cancel(held.id);
  seen.canceled = [canceled.processing_status, canceled.cancel_initiated_at !== null];
  seen["canceled once"] = again.cancel_initiated_at === canceled.cancel_initiated_at;
  report({ open: name });
  await waitEnded(batches, held.id);
  seen["canceled results"] = shown(await everything(batches.results(held.id)));

  const made = [];
  for (let n = 0; n < 5; n++) made.push((await create(`${name}-page-${n}`)).id);
  const listed = ids(await everything(batches.list({ limit: 2 })));
  seen["newest first"] = same(listed.slice(0, 5), made.toReversed());
  seen["each once"] = new Set(listed).size === listed.length;
  seen["to the end"] = listed.includes(created.id);
  const newer = ids(await everything(batches.list({ limit: 2, before_id: made[0] })));
  seen.newer = same(newer.toSorted(), made.slice(1).toSorted());
  const older = await batches.list({ limit: 3, after_id: made[4] });
  seen.older = same(ids(older.data), made.slice(1, 4).toReversed());
  seen.more = [older.has_more, older.first_id === made[3], older.last_id === made[1]];

  const { data, response } = await batches.retrieve(created.id).withResponse();
  seen.raw = [
    response.headers.get("content-type"),
    response.headers.get("retry-after"),
    data.id === created.id,
  ];
  await waitEnded(batches, made[0]);
  const unchanged = await batches.cancel(made[0]);
  seen["canceled late"] = [unchanged.processing_status, unchanged.cancel_initiated_at];
  const deleted = await batches.delete(made[0]);
  seen.deleted = [deleted.type, deleted.id === made[0]];
  for (const call of ["retrieve", "results", "cancel", "delete"]) {
    seen[`${call} of the deleted`] = await failure(() => batches[call](made[0]));
  }
  seen["odd id"] = await failure(() => batches.retrieve("msgbatch 1+2"));
  return seen;
}

/** Meet what a server refuses by itself. */
async function errors(client) {
  const { batches } = client.messages;
  const good = [request("errors-1")];
  const keyed = { headers: { "idempotency-key": "k" } };
  const other = (headers) => new Anthropic({ apiKey: "one", baseURL: url, defaultHeaders: headers });
  const badVersion = other({ "anthropic-version": "1999-01-01" });
  // Its own key stands in the one header, another in the other.
  const twoKeys = other(version < "1" ? { authorization: "Bearer two" } : { "x-api-key": "two" });
  const browser = other({ origin: "http://evil.example" });
  const unknown = "/_stainless_unknown_path";
  const cases = {
    empty: () => batches.create({ requests: [] }),
    "custom id": () => batches.create({ requests: [{ ...request("x"), custom_id: "a b" }] }),
    twice: () => batches.create({ requests: [...good, ...good] }),
    unknown: () => batches.retrieve("msgbatch_unknown"),
    "unknown results": () => batches.results("msgbatch_unknown"),
    "unknown cancel": () => batches.cancel("msgbatch_unknown"),
    "unknown delete": () => batches.delete("msgbatch_unknown"),
    "unknown path": () => client.get(unknown),
    "unknown path, POST": () => client.post(unknown, { body: {} }),
    "unknown path, DELETE": () => client.delete(`${unknown}?limit=1`),
    version: () => badVersion.messages.batches.list(),
    key: () => twoKeys.messages.batches.list(),
    origin: () => browser.messages.batches.create({ requests: good }),
    limit: () => batches.list({ limit: 1001 }),
    conflict: async () => {
      await batches.create({ requests: good }, keyed);
      await batches.create({ requests: [request("errors-2")] }, keyed);
    },
    "too large": () => batches.create({ requests: [request(`errors-3${"x".repeat(3_000_000)}`)] }),
  };
  const seen = {};
  for (const [name, call] of Object.entries(cases)) seen[name] = await failure(call);
  return seen;
}

async function messages(client) {
  const { params } = request("sync-1");
  const message = await client.messages.create(params);
  const refused = await failure(() => client.messages.create(request("sync-2|404").params));
  const stream = await client.messages.create({ ...request("sync-3|sse").params, stream: true });
  const kinds = (await everything(stream)).map((event) => event.type);
  const { max_tokens, ...counted } = params;
  return {
    message: [message.content[0].text, message.usage.service_tier],
    refused: refused.slice(0, 3),
    stream: kinds,
    tokens: (await client.messages.countTokens(counted)).input_tokens,
    models: (await everything(client.models.list())).map((model) => model.id),
  };
}

async function lifecycle() {
  const client = new Anthropic({ apiKey: "sk-test", baseURL: url });
  const seen = { version, lives: {} };
  seen.lives.ga = await drive(client.messages.batches, "ga", {});
  seen.lives.beta = await drive(client.beta.messages.batches, "beta", { betas: BETAS });
  // The same id, spelled otherwise: a server decodes a path before it looks.
  const { id } = seen.lives.ga.created;
  const found = await client.get(`/v1/messages/batches/${id.replaceAll("_", "%5F")}`);
  seen.encoded = found.id === id;
  seen.errors = await errors(client);
  seen.messages = await messages(client);
  const prefixed = new Anthropic({ apiKey: "sk-test", baseURL: `${url}/prefix`, maxRetries: 0 });
  seen.prefix = (await failure(() => prefixed.messages.batches.list())).slice(0, 3);
  report(seen);
}

/** Make each call as often as it fails, in each namespace, and then once more. */
async function faults(counts) {
  const client = new Anthropic({ apiKey: "sk-test", baseURL: url, maxRetries: 0 });
  const spaces = { ga: client.messages.batches, beta: client.beta.messages.batches };
  const made = {};
  const seen = {};
  for (const name of Object.keys(spaces)) {
    made[name] = "msgbatch_not_made_yet";
    seen[name] = {};
  }
  for (const [call, count] of Object.entries(counts)) {
    for (const [name, batches] of Object.entries(spaces)) {
      const calls = {
        create: () => batches.create({ requests: [request(`faults-${name}`)] }),
        list: () => batches.list({ limit: 1 }),
        results: () => everything(batches.results(made[name])),
      };
      const make = calls[call] ?? (() => batches[call](made[name]));
      seen[name][call] = [];
      for (let n = 0; n < count; n++) seen[name][call].push(await failure(make));
    }
    // The faults of this call are used up: now it must work.
    for (const [name, batches] of Object.entries(spaces)) {
      if (call === "create") {
        const good = [0, 1, 2].map((n) => request(`good-${n}`));
        made[name] = (await batches.create({ requests: good })).id;
      } else if (call === "retrieve") {
        await waitEnded(batches, made[name]);
      }
    }
  }
  for (const [name, batches] of Object.entries(spaces)) {
    const listed = (await everything(batches.list({ limit: 100 }))).map((batch) => batch.id);
    seen[name]["at last"] = [
      listed.includes(made[name]),
      (await batches.cancel(made[name])).processing_status,
      (await everything(batches.results(made[name]))).map((line) => line.custom_id).toSorted(),
      (await batches.delete(made[name])).type,
    ];
  }
  report(seen);
}

async function create(customId) {
  const client = new Anthropic({ apiKey: "sk-proxy", baseURL: url });
  const batch = await client.messages.batches.create({ requests: [request(customId)] });
  report({ version, id: batch.id });
}

const commands = {
  lifecycle,
  faults: () => faults(JSON.parse(rest[0])),
  create: () => create(rest[0]),
};
await commands[command]();
