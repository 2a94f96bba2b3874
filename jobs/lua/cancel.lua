#!lua flags=allow-oom
-- cancel <id> <retention_s> -> the record afterwards, or nil for an unknown id
local id, retention = unpack(ARGV)
if call('EXISTS', job(id)) == 0 then return false end
cancel(id, retention)
return call('HGETALL', job(id))
