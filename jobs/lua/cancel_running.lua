#!lua flags=allow-oom
-- cancel_running <worker> <attempt> <id> <retention_s> -> 1: the wish became a fact; 0: not held, or no such wish
local worker, attempt, id, retention = unpack(ARGV)
if settled_by(worker, attempt, id, 'canceled') then return 1 end
if not holds(worker, attempt, id) or call('HGET', job(id), 'cancel_requested') ~= '1' then return 0 end
correct(id, '')
settle(id, 'canceled', retention)
return 1
