#!lua
-- submit <id> <client> <queue> <priority> <cost> <max_queued> <idempotency key or ''> <its seconds> <fingerprint>
--        <field> <value> ... -> {'created' | 'existing', record} | {'conflict'} | {'full', seconds to wait}
-- The one script that is refused when the server is out of memory: nothing is accepted that cannot be kept.
local id, client, queue, priority, cost, max_queued, key, key_ttl, fingerprint = unpack(ARGV, 1, 9)
local idem = q .. 'idem:' .. client .. ':' .. key

if key ~= '' then
  local known = call('HMGET', idem, 'id', 'fingerprint')
  if known[1] and known[2] ~= fingerprint then return { 'conflict' } end
  local record = known[1] and call('HGETALL', job(known[1])) or {}
  if #record > 0 then return { 'existing', record } end
end
if call('EXISTS', job(id)) == 1 then return { 'existing', call('HGETALL', job(id)) } end

local t = now()
if call('ZCARD', q .. 'pending') >= tonumber(max_queued) then
  -- A queue of N jobs whose oldest has waited A seconds drains by N/A a second: wait for a tenth of it.
  local oldest = call('ZRANGE', q .. 'pending', 0, 0, 'WITHSCORES')
  local wait = oldest[2] and (t - tonumber(oldest[2])) / 10 or 1
  return { 'full', math.ceil(math.min(math.max(wait, 1), 60)) }
end

local score = call('INCR', q .. 'seq') - tonumber(priority) * BAND
call('HSET', job(id), unpack(ARGV, 10))
call('HSET', job(id), 'created_at', stamp(t), 'queue', queue, 'score', score, 'cost', cost)
if key ~= '' then
  call('HSET', idem, 'id', id, 'fingerprint', fingerprint)
  call('EXPIRE', idem, key_ttl)
end
emit(id, 'queued')
enqueue(id)
return { 'created', call('HGETALL', job(id)) }
