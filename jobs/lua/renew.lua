#!lua flags=allow-oom
-- renew <worker> <lease_s> <id> <attempt> ... -> {ids the worker has lost, ids whose cancel is wished}
local worker, lease = ARGV[1], tonumber(ARGV[2])
local t = now()
local lost, canceled = {}, {}
for i = 3, #ARGV, 2 do
  local id = ARGV[i]
  if not holds(worker, ARGV[i + 1], id) then
    lost[#lost + 1] = id
  else
    call('ZADD', q .. 'lease', t + lease, id)
    if call('HGET', job(id), 'cancel_requested') == '1' then canceled[#canceled + 1] = id end
  end
end
return { lost, canceled }
