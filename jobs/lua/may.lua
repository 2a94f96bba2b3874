#!lua flags=no-writes
-- may <client> <queue> <service_class> <key> <fingerprint> <reuse_key> <max_queued> <max_per_client> <rate_per_s> <burst> <per_day>
--     <count> <pictures> -> {'yes' | 'known'} | {'conflict'} | {'limited' | 'spent', seconds} | {'full', seconds, 'client' where only its own part is full}
-- Whether a submit of one job, or of a batch of `count`, would be let in now, but for a deadline. Nothing is written: submit and
-- batch_open decide. 'known': it is a repeat, and what it asks for is here, or was.
local client, queue, class, key, fingerprint, reuse_key = unpack(ARGV, 1, 6)
local max_queued, max_per_client, rate, burst, per_day, count, pictures = unpack(ARGV, 7, 13)
local entry = key ~= '' and call('HMGET', q .. 'idem:' .. client .. ':' .. key, 'id', 'fingerprint') or {}
if entry[1] and entry[2] ~= fingerprint then return { 'conflict' } end
if entry[1] and call('EXISTS', job(entry[1]), q .. 't:' .. entry[1], q .. 'b:' .. entry[1]) > 0 then return { 'known' } end
local first, ready = leader(client, reuse_key)
local refusal = limited(client, rate, burst, tonumber(count))
if not refusal and not first then refusal = spent(client, per_day, pictures) end
if not refusal and not ready then refusal = full(queue, class, client, max_queued, max_per_client, tonumber(count)) end
return refusal or { 'yes' }
