-- One exchange of one process: every ask answered in order, on Redis's own clock. `gateway/slices.py` says what they mean.
-- KEYS[1] generation: the microsecond at which this memory began. KEYS[2] sorted set: processes by the end of their life.
-- KEYS[3..] one budget each. A flow is a hash: r, the microsecond at which its bucket is full; g, granted while young.
-- A stock is a hash: p<process> = "share:used:end"; s, what is settled; g as above; c, until when it is contended.
-- ARGV generation, process, life (us), grace (us), contention (us), parts; then ten numbers for each budget.
-- Amounts above 2^53 are exact to one part in 10^15 only.
local FIELDS = 10
local period = 60000000
local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000000 + tonumber(clock[2])
local process, contention, parts = ARGV[2], tonumber(ARGV[5]), tonumber(ARGV[6])

local generation = redis.call('GET', KEYS[1])
if not generation then
  generation = string.format('%.0f', now)
  redis.call('SET', KEYS[1], generation)
end
redis.call('ZADD', KEYS[2], now + tonumber(ARGV[3]), process)
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
local answer = { generation, redis.call('ZCARD', KEYS[2]) }
if ARGV[1] ~= generation then return answer end
local young = math.max((tonumber(generation) or 0) + tonumber(ARGV[4]) - now, 0)

local function whole(number) return string.format('%.0f', number) end

-- Numbers as decimal text: the longer one is the larger one.
local function larger(one, other)
  if #one ~= #other then return #one > #other and one or other end
  return one > other and one or other
end

-- Of what is left beyond need, a part.
local function extra(want, left)
  return math.max(math.min(want, math.floor(left / parts)), 0)
end

local function flow(key, limit, slice, known, spent, least, need, want)
  local stored = redis.call('HMGET', key, 'r', 'g')
  local full = math.max(tonumber(stored[1]) or now, now + known)
  full = math.max(full + spent * period / limit, now)
  local room = math.floor((period - full + now) * limit / period + 0.000001)
  local given = tonumber(stored[2]) or 0
  local held_back = 0
  if young > 0 and room > slice - given then
    room = slice - given
    if room < least then held_back = young end
  end
  local granted = 0
  if need > 0 and room >= math.max(least, 1) then granted = math.min(need, room) end
  if granted == need then granted = granted + extra(want, room - granted) end
  full = full + granted * period / limit
  if full > now then
    redis.call('HSET', key, 'r', string.format('%.17g', full), 'g', whole(young > 0 and given + granted or 0))
    redis.call('PEXPIRE', key, math.ceil((full - now) / 1000) + 1000)
  else
    redis.call('DEL', key)
  end
  return { granted, math.ceil(full - now), math.ceil(held_back) }
end

local function stock(key, limit, slice, settled, held, used, least, need, want, ttl_ms)
  local others, idle, given, contended = 0, 0, 0, 0
  local stored = redis.call('HGETALL', key)
  for i = 1, #stored, 2 do
    local field, value = stored[i], stored[i + 1]
    if field == 's' then
      settled = larger(value, settled)
    elseif field == 'g' then
      given = tonumber(value)
    elseif field == 'c' then
      contended = tonumber(value)
    else
      local share, their_used, ends = string.match(value, '^(%d+):(%d+):(%d+)$')
      if tonumber(ends) <= now then
        redis.call('HDEL', key, field)
      elseif field ~= 'p' .. process then
        others = others + tonumber(share)
        idle = idle + tonumber(share) - tonumber(their_used)
      end
    end
  end
  local room = limit - tonumber(settled) - others
  local held_back = 0
  if young > 0 and room > held + slice - given then
    room = held + slice - given
    if room < least then held_back = young end
  end
  local share = held
  if need > held and room >= least then share = math.max(math.min(need, room), held) end
  if share >= need then share = share + extra(want - share, room - share) end
  if share < need then
    contended = now + contention
    redis.call('HSET', key, 'c', whole(contended))
  end
  if young > 0 then redis.call('HSET', key, 'g', whole(given + share - held)) end
  if settled ~= '0' then redis.call('HSET', key, 's', settled) end
  if share > 0 then
    redis.call('HSET', key, 'p' .. process, whole(share) .. ':' .. whole(used) .. ':' .. whole(now + ttl_ms * 1000))
  else
    redis.call('HDEL', key, 'p' .. process)
  end
  redis.call('PEXPIRE', key, ttl_ms + 1000)
  return {
    share, limit - tonumber(settled) - others - share, idle, contended > now and 1 or 0, math.ceil(held_back),
  }
end

for i = 3, #KEYS do
  local at = 7 + (i - 3) * FIELDS
  local a = {}
  for n = 1, FIELDS - 1 do a[n] = tonumber(ARGV[at + n]) end
  if ARGV[at] == 'flow' then
    answer[i] = flow(KEYS[i], a[1], a[2], a[3], a[4], a[5], a[6], a[7])
  else
    answer[i] = stock(KEYS[i], a[1], a[2], ARGV[at + 3], a[4], a[5], a[6], a[7], a[8], a[9])
  end
end
return answer
