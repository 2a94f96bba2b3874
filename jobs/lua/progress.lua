#!lua flags=allow-oom
-- progress <worker> <attempt> <id> <steps_done> <preview or ''> <preview_at or ''> -> 0 lost, 1 held, 2 held and cancel is wished
-- Within an attempt steps_done never falls. Only the newest preview is kept, beside the stream; with all those of `preview_at`.
local worker, attempt, id, steps, preview, at = unpack(ARGV)
if not holds(worker, attempt, id) then return 0 end
local f = call('HMGET', job(id), 'steps_done', 'steps_total', 'cancel_requested')
local before = tonumber(f[1])
local done = math.max(before, math.min(tonumber(steps), tonumber(f[2])))
call('HSET', job(id), 'steps_done', done)
if done > before or preview ~= '' then
  local event = emit(id, 'progress', { preview = preview ~= '' or nil, preview_at = tonumber(at) })
  if preview ~= '' then call('HSET', q .. 'p:' .. id, 'event', event, 'data', preview) end
  if preview ~= '' and at ~= '' then call('HSET', q .. 'p:' .. id, event, preview) end
end
return f[3] == '1' and 2 or 1
