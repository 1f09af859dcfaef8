-- GCRA of one key's requests and tokens per minute in one round trip, on Redis's own clock.
-- KEYS[1] hash: r, t = microsecond at which each bucket is full again.
-- ARGV requests/min (0: none), requests to spend, tokens/min (0: none), tokens to spend, tokens to correct first.
-- Returns microseconds to wait for requests and for tokens (both 0: spent), and microseconds until each is full.
local period = 60000000
local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000000 + tonumber(clock[2])
local request_limit, request_cost = tonumber(ARGV[1]), tonumber(ARGV[2])
local token_limit, token_cost, correction = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])

local stored = redis.call('HMGET', KEYS[1], 'r', 't')
local r = math.max(tonumber(stored[1]) or now, now)
local t = math.max(tonumber(stored[2]) or now, now)
local request_wait, token_wait = 0, 0

if token_limit > 0 then
  t = math.max(t + correction * period / token_limit, now)
  token_wait = math.max(t - now + token_cost * period / token_limit - period, 0)
end
if request_limit > 0 then
  request_wait = math.max(r - now + request_cost * period / request_limit - period, 0)
end
-- A microsecond is rounding.
if request_wait <= 1 and token_wait <= 1 then
  request_wait, token_wait = 0, 0
  if request_limit > 0 then r = r + request_cost * period / request_limit end
  if token_limit > 0 then t = t + token_cost * period / token_limit end
end

local full_in = math.max(r, t) - now
if full_in > 0 then
  redis.call('HSET', KEYS[1], 'r', string.format('%.0f', r), 't', string.format('%.0f', t))
  redis.call('PEXPIRE', KEYS[1], math.ceil(full_in / 1000) + 1000)
else
  redis.call('DEL', KEYS[1])
end
return { math.ceil(request_wait), math.ceil(token_wait), math.ceil(r - now), math.ceil(t - now) }
