#!lua
-- checkpoint <worker> <attempt> <id> <ttl_s> <steps or ''> <images json> <data> -> 1, or 0 to whoever does not hold the job
-- Only work behind an earlier checkpoint is progress, and clears the job of what happened before.
local worker, attempt, id, ttl, steps, images, data = unpack(ARGV)
if not holds(worker, attempt, id) then return 0 end
local key = q .. 'k:' .. id
local f = call('HMGET', job(id), 'steps_done', 'steps_total')
local before = tonumber(call('HGET', key, 'steps') or 0)
local done = math.min(tonumber(steps ~= '' and steps or f[1]), tonumber(f[2]))
if done < before then return 1 end -- an older state of the same attempt
call('HSET', key, 'data', data, 'images', images, 'attempt', attempt, 'steps', done)
call('EXPIRE', key, ttl)
if done > tonumber(f[1]) then call('HSET', job(id), 'steps_done', done) end
if done > before then call('HSET', job(id), 'failures', 0) end
return 1
