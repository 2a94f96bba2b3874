#!lua flags=allow-oom
-- progress <worker> <attempt> <id> <steps_done> <preview or ''> -> 0 lost, 1 held, 2 held and cancel is wished
-- Within an attempt steps_done never falls. Only the newest preview is kept, beside the stream.
local worker, attempt, id, steps, preview = unpack(ARGV)
if not holds(worker, attempt, id) then return 0 end
local f = call('HMGET', job(id), 'steps_done', 'steps_total', 'cancel_requested')
local before = tonumber(f[1])
local done = math.max(before, math.min(tonumber(steps), tonumber(f[2])))
call('HSET', job(id), 'steps_done', done)
if done > before or preview ~= '' then
  local event = emit(id, 'progress', { preview = preview ~= '' or nil })
  if preview ~= '' then call('HSET', q .. 'p:' .. id, 'event', event, 'data', preview) end
end
return f[3] == '1' and 2 or 1
