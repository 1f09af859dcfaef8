// The official npm client against a running Cocoon network. What the model says is its own affair.
import assert from 'node:assert/strict';
import { test } from 'node:test';

import OpenAI from 'openai';

const { COCOON_API_KEY: apiKey, COCOON_BASE_URL: baseURL, COCOON_LIMITED_KEY: limitedKey, COCOON_MODEL: model } =
  process.env;
const client = new OpenAI({ apiKey, baseURL, maxRetries: 0, timeout: 60_000 });
const messages = [{ role: 'user', content: 'Say hello.' }];
// Members that OpenAI does not know and the engine does: it generates until it is stopped, and every token is text.
const onAndOn = { ignore_eos: true, grammar: 'root ::= [a-z ]+' };

test('an answer has text, counts and a cost', async () => {
  const { data, response, request_id } = await client.chat.completions
    .create({ model, messages, max_tokens: 8, seed: 1, temperature: 0 })
    .withResponse();
  assert.equal(data.object, 'chat.completion');
  assert.equal(data.choices.length, 1);
  assert.equal(data.choices[0].message.role, 'assistant');
  assert.ok(data.choices[0].message.content.length > 0);
  assert.ok(['stop', 'length'].includes(data.choices[0].finish_reason));
  const { prompt_tokens, completion_tokens, total_tokens, cost, cost_nano } = data.usage;
  assert.ok(prompt_tokens > 0 && completion_tokens >= 1 && completion_tokens <= 8);
  assert.equal(total_tokens, prompt_tokens + completion_tokens);
  assert.ok(Number.isInteger(cost_nano) && cost_nano > 0);
  assert.equal(Math.round(Number(cost) * 1e9), cost_nano);
  assert.equal(request_id, response.headers.get('x-request-id'));
  assert.equal(request_id, response.headers.get('x-cocoon-receipt'));
  assert.match(response.headers.get('x-cocoon-worker'), /^worker-[12]$/);
});

test('a stream is an async iterator that ends with usage', async () => {
  const stream = await client.chat.completions.create({
    model,
    messages,
    max_tokens: 8,
    temperature: 0,
    stream: true,
    stream_options: { include_usage: true },
  });
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  const last = chunks.pop();
  assert.deepEqual(last.choices, []);
  assert.ok(last.usage.completion_tokens >= 1 && last.usage.completion_tokens <= 8);
  assert.ok(last.usage.cost_nano > 0);
  assert.equal(chunks[0].choices[0].delta.role, 'assistant');
  assert.ok(chunks.map((chunk) => chunk.choices[0].delta.content ?? '').join('').length > 0);
  assert.ok(['stop', 'length'].includes(chunks.at(-1).choices[0].finish_reason));
  assert.ok(chunks.every((chunk) => chunk.usage == null));
});

test("the client's stream helper puts an answer together", async () => {
  const runner = client.chat.completions.stream({ model, messages, max_tokens: 8 });
  let deltas = '';
  runner.on('content', (delta) => {
    deltas += delta;
  });
  const completion = await runner.finalChatCompletion();
  assert.equal(completion.choices[0].message.role, 'assistant');
  assert.equal(completion.choices[0].message.content, deltas);
});

test("the stream helper finds a role where the engine's first token is a part of a character", async () => {
  const grammar = 'root ::= "\u{1f469} hi"';
  const runner = client.chat.completions.stream({ model, messages, max_tokens: 20, grammar });
  assert.equal(await runner.finalContent(), '\u{1f469} hi');
});

test('structured output follows its schema', async () => {
  const schema = {
    type: 'object',
    properties: { polite: { type: 'boolean' }, size: { enum: ['small', 'large'] } },
    required: ['polite', 'size'],
    additionalProperties: false,
  };
  const answer = await client.chat.completions.create({
    model,
    messages,
    max_tokens: 200,
    temperature: 0,
    response_format: { type: 'json_schema', json_schema: { name: 'verdict', strict: true, schema } },
  });
  const verdict = JSON.parse(answer.choices[0].message.content);
  assert.equal(typeof verdict.polite, 'boolean');
  assert.ok(['small', 'large'].includes(verdict.size));
});

test('breaking out of a stream leaves the client usable', async () => {
  const stream = await client.chat.completions.create({ model, messages, max_tokens: 3000, stream: true, ...onAndOn });
  for await (const chunk of stream) {
    if (chunk.choices[0].delta.content) break;
  }
  assert.ok(stream.controller.signal.aborted);
  const next = await client.chat.completions.create({ model, messages, max_tokens: 1 });
  assert.equal(next.usage.completion_tokens, 1);
});

test('an abort and a timeout are errors of their own', async () => {
  const request = { model, messages, max_tokens: 3000, ...onAndOn };
  const controller = new AbortController();
  const pending = client.chat.completions.create(request, { signal: controller.signal });
  setTimeout(() => controller.abort(), 1000);
  await assert.rejects(pending, OpenAI.APIUserAbortError);
  await assert.rejects(client.chat.completions.create(request, { timeout: 1000 }), OpenAI.APIConnectionTimeoutError);
});

test('models are listed and retrieved', async () => {
  const ids = [];
  for await (const found of client.models.list()) ids.push(found.id);
  assert.deepEqual(ids, [model]);
  assert.equal((await client.models.retrieve(model)).id, model);
});

test('errors are of the classes that OpenAI promises', async () => {
  const ask = (change, options) => client.chat.completions.create({ model, messages, ...change }, options);
  const stranger = client.withOptions({ apiKey: `sk-cocoon-${'A'.repeat(43)}` });
  await assert.rejects(stranger.models.list(), OpenAI.AuthenticationError);
  await assert.rejects(ask({ model: 'no-such-model' }), (error) => {
    assert.ok(error instanceof OpenAI.NotFoundError);
    assert.equal(error.code, 'model_not_found');
    assert.ok(error.requestID);
    return true;
  });
  for (const stream of [false, true]) {
    await assert.rejects(ask({ messages: [], stream }), (error) => {
      assert.ok(error instanceof OpenAI.BadRequestError);
      assert.equal(error.param, 'messages');
      assert.equal(error.type, 'invalid_request_error');
      return true;
    });
  }
});

test('a key over its limit is told when to come back', async () => {
  const limited = client.withOptions({ apiKey: limitedKey });
  const { response } = await limited.chat.completions.create({ model, messages, max_tokens: 1 }).withResponse();
  assert.equal(response.headers.get('x-ratelimit-limit-requests'), '1');
  await assert.rejects(limited.chat.completions.create({ model, messages, max_tokens: 1 }), (error) => {
    assert.ok(error instanceof OpenAI.RateLimitError);
    assert.ok(Number(error.headers.get('retry-after')) >= 1);
    return true;
  });
});
