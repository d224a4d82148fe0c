"""What Redis runs. A script is atomic, so each is one decision in one round trip.

All keys of a script share a hash tag, `{subject}`, `{keys}` or `{ledger}`, hence one slot of a
cluster. `LIMITS` is `core.limits` once more in Lua; `tests/stores/test_scripts.py` holds the two
against each other. Lua counts in doubles: levels and dollars are whole numbers and exact up to
2^53, which is 900 000 USD in one budget window.
"""

from __future__ import annotations

# KEYS: state, leases (sorted set: "id:tokens:usd" by its expiry in ms).
# ARGV: 1 now in ms, 0: the server's own clock, one for all replicas; 2 requests and 3 tokens per
# minute, 4 slots, 0: no limit; 5 budget in units, -1: none; 6 its window.
# A state is a line of numbers and the window's name, `-` before there is one: read and written in
# one command each, and told in one piece, it takes half the time that a hash of its fields does.
_LIMITS = """
local now = tonumber(ARGV[1])
if now == 0 then
  local time = redis.call('TIME')
  now = time[1] * 1000 + math.floor(time[2] / 1000)
end
local rpm, tpm, slots = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local budget, per = tonumber(ARGV[5]), ARGV[6]
local NEVER = 4611686018427387904
local NAMES = {
  'at', 'requests', 'tokens', 'calls', 'held_tokens', 'held_usd', 'spent', 'start', 'end'}
local words = string.gmatch(redis.call('GET', KEYS[1]) or '0 0 0 0 0 0 0 0 0 -', '%S+')
local s = {}
for _, name in ipairs(NAMES) do s[name] = tonumber(words()) end
s.per = words()

local function release(member)
  local tokens, usd = string.match(member, ':(%d+):(%d+)$')
  s.calls = math.max(0, s.calls - 1)
  s.held_tokens = math.max(0, s.held_tokens - tonumber(tokens))
  s.held_usd = math.max(0, s.held_usd - tonumber(usd))
end

-- Slots of processes that no longer renew them.
for _, member in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now)) do
  release(member)
  redis.call('ZREM', KEYS[2], member)
end

-- Days since 1970 -> how many days of their month came before
-- (howardhinnant.github.io/date_algorithms.html, civil_from_days).
local function days_into_month(day)
  local z = day + 719468
  local of_era = z % 146097
  local year = math.floor((of_era - math.floor(of_era / 1460) + math.floor(of_era / 36524)
    - math.floor(of_era / 146096)) / 365)
  local of_year = of_era - (365 * year + math.floor(year / 4) - math.floor(year / 100))
  local month = math.floor((5 * of_year + 2) / 153)
  return of_year - math.floor((153 * month + 2) / 5)
end

local function open_window()
  local seconds = math.floor(now / 1000)
  s.per, s.spent, s.start, s['end'] = per, 0, 0, NEVER
  if per == 'month' then
    local day = math.floor(seconds / 86400)
    local first = day - days_into_month(day)
    local next = first + 31
    next = next - days_into_month(next)
    s.start, s['end'] = first * 86400, next * 86400
  elseif per ~= 'total' then
    local length = per == 'hour' and 3600 or 86400
    s.start = seconds - seconds % length
    s['end'] = s.start + length
  end
end

now = math.max(now, s.at)
local passed = now - s.at
s.at = now
s.requests = rpm > 0 and math.max(0, s.requests - passed * rpm) or 0
s.tokens = tpm > 0 and math.max(0, s.tokens - passed * tpm) or 0
if budget >= 0 and (s.per ~= per or now >= s['end'] * 1000) then open_window() end

local function text(number) return string.format('%.0f', number) end

-- Kept until nothing is worth remembering: levels drained, window over, leases run out.
local function save()
  local line = string.format('%.0f %.0f %.0f %.0f %.0f %.0f %.0f %.0f %.0f %s',
    s.at, s.requests, s.tokens, s.calls, s.held_tokens, s.held_usd, s.spent, s.start, s['end'],
    s.per)
  local ttl = 600000
  if rpm > 0 then ttl = math.max(ttl, math.ceil(s.requests / rpm)) end
  if tpm > 0 then ttl = math.max(ttl, math.ceil(s.tokens / tpm)) end
  if s['end'] == NEVER then
    redis.call('SET', KEYS[1], line)
  else
    redis.call('SET', KEYS[1], line, 'PX', text(math.max(ttl, s['end'] * 1000 - now)))
  end
  redis.call('PEXPIRE', KEYS[2], 600000)
  return line
end
"""

# ARGV: 7 tokens and 8 units to hold, 9 the lease, 10 how long it lasts without renewal, in ms.
# Returns 1 or 0, and the state, in one line.
TAKE = (
    _LIMITS
    + """
local tokens, usd = tonumber(ARGV[7]), tonumber(ARGV[8])
local fits = not (
  (rpm > 0 and s.requests + 60000 > rpm * 60000)
  or (tpm > 0 and s.tokens + (s.held_tokens + tokens) * 60000 > tpm * 60000)
  or (slots > 0 and s.calls >= slots)
  or (budget >= 0 and s.spent >= budget)
  or (budget >= 0 and s.calls > 0 and s.spent + s.held_usd + usd > budget))
if fits then
  s.requests = s.requests + 60000
  s.calls = s.calls + 1
  s.held_tokens = s.held_tokens + tokens
  s.held_usd = s.held_usd + usd
  redis.call('ZADD', KEYS[2], text(now + tonumber(ARGV[10])), ARGV[9])
end
return (fits and '1 ' or '0 ') .. save()
"""
)

# ARGV: 7 the lease, 8 tokens and 9 units to pay; 10: 0 when it may have been settled before, and
# so is only settled if the lease is still there.
SETTLE = (
    _LIMITS
    + """
local there = redis.call('ZREM', KEYS[2], ARGV[7])
if there == 0 and ARGV[10] == '0' then return 0 end
if there == 1 then release(ARGV[7]) end
s.tokens = s.tokens + tonumber(ARGV[8]) * 60000
s.spent = s.spent + tonumber(ARGV[9])
save()
return 1
"""
)

# KEYS: leases, state. ARGV: 1 now, as above, 2 for how many ms, 3... the leases.
RENEW = """
local now = tonumber(ARGV[1])
if now == 0 then
  local time = redis.call('TIME')
  now = time[1] * 1000 + math.floor(time[2] / 1000)
end
local expires = string.format('%.0f', now + tonumber(ARGV[2]))
for i = 3, #ARGV do redis.call('ZADD', KEYS[1], 'XX', expires, ARGV[i]) end
redis.call('PEXPIRE', KEYS[1], 600000)
if redis.call('PTTL', KEYS[2]) >= 0 and redis.call('PTTL', KEYS[2]) < 600000 then
  redis.call('PEXPIRE', KEYS[2], 600000)
end
return 1
"""

# KEYS: version, records (hash by id), changed (sorted set: id by version). ARGV: id, record.
SAVE_KEY = """
local version = redis.call('INCR', KEYS[1])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
redis.call('ZADD', KEYS[3], version, ARGV[1])
return version
"""

# KEYS: as above. ARGV: the version seen last. Returns the version, 1 when these are all keys, and
# the records that changed. A version below the one seen means that the server lost its data.
KEYS_SINCE = """
local version = tonumber(redis.call('GET', KEYS[1]) or 0)
local seen = tonumber(ARGV[1])
if version == seen then return {version, 0} end
local all = version < seen or seen < 0
local ids = redis.call('ZRANGEBYSCORE', KEYS[3], all and '-inf' or '(' .. seen, '+inf')
local answer = {version, all and 1 or 0}
for _, id in ipairs(ids) do answer[#answer + 1] = redis.call('HGET', KEYS[2], id) end
return answer
"""

# KEYS: mark of this batch, rows of its hour (hash), index of hours. ARGV: the hour, how long to
# keep it in seconds, then field and amount in turn. The mark makes sending it again harmless.
ADD_ROWS = """
if not redis.call('SET', KEYS[1], 1, 'NX', 'EX', 3600) then return 0 end
for i = 3, #ARGV, 2 do redis.call('HINCRBY', KEYS[2], ARGV[i], ARGV[i + 1]) end
redis.call('EXPIRE', KEYS[2], ARGV[2])
redis.call('ZADD', KEYS[3], ARGV[1], ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', ARGV[1] - ARGV[2])
return 1
"""

ALL = (TAKE, SETTLE, RENEW, SAVE_KEY, KEYS_SINCE, ADD_ROWS)
