#!lua flags=no-writes
-- lanes -> {lane, ready jobs, seconds for which the oldest of them has waited, ...}. Looked at are those that stand first in
-- their client's line, of 1000 clients in each lane at most.
local LOOKED_AT = 1000
local told, t, ready = {}, now(), call('HGETALL', q .. 'ready')
for i = 1, #ready, 2 do
  local lane, oldest = ready[i], t
  for _, client in ipairs(call('ZRANGE', q .. 'ring:' .. lane, 0, LOOKED_AT - 1)) do
    local first = call('ZRANGE', q .. 'r:' .. lane .. ':' .. client, 0, 0)[1]
    local at = first and tonumber(call('HGET', job(first), 'created_at'))
    if at and at < oldest then oldest = at end
  end
  told[#told + 1], told[#told + 2], told[#told + 3] = lane, ready[i + 1], stamp(t - oldest)
end
return told
