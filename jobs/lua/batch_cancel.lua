#!lua flags=allow-oom
-- batch_cancel <batch> <retention_s> <id> ... -> 1; 0 for an unknown batch
-- No more of its jobs come in; each of those named is canceled.
local batch, retention = unpack(ARGV, 1, 2)
if call('EXISTS', q .. 'b:' .. batch) == 0 then return 0 end
call('HSET', q .. 'b:' .. batch, 'stopped', 1)
for i = 3, #ARGV do cancel(ARGV[i], retention) end
return 1
