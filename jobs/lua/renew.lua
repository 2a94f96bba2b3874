#!lua flags=allow-oom
-- renew <worker> <lease_s> <id> <attempt> ... -> {ids the worker has lost, ids whose cancel is wished, ids it may pause}
-- The last is empty unless somebody urgent waits for these models, who is not yet waited for by other workers.
local worker, lease = ARGV[1], tonumber(ARGV[2])
local MAX_PAUSES = 3 -- of one job: whoever is paused for others must also come to its end
local PAUSE_S = 5 -- for which a worker is counted as making room
local t = now()
local lost, canceled, held = {}, {}, {}

local function urgent_jobs(queue)
  local waiting = tonumber(call('HGET', q .. 'ready', lane_of(queue, 'interactive')) or 0)
  return waiting + call('ZCOUNT', q .. 'slack:' .. queue, '-inf', t + URGENT_S)
end

-- As many workers make room as jobs are urgent; the others go on.
local function makes_room(queue)
  local waiting, makers = urgent_jobs(queue), q .. 'room:' .. queue
  if waiting == 0 then return false end
  call('ZREMRANGEBYSCORE', makers, '-inf', t)
  if not call('ZSCORE', makers, worker) and call('ZCARD', makers) >= waiting then return false end
  call('ZADD', makers, 'NX', t + PAUSE_S, worker)
  call('EXPIRE', makers, 60)
  return true
end

-- Lowest class first, then who was paused least; never who is urgent itself.
local function pausable()
  local queues, found = {}, {}
  for _, id in ipairs(held) do
    local f = call('HMGET', job(id), 'queue', 'pauses')
    local class, _, due = place_of(id)
    local rank, pauses = RANK[class], tonumber(f[2] or 0)
    if rank > 1 and pauses < MAX_PAUSES and due == '' then
      if queues[f[1]] == nil then queues[f[1]] = makes_room(f[1]) end
      if queues[f[1]] then found[#found + 1] = { id, rank, pauses } end
    end
  end
  table.sort(found, function(a, b)
    if a[2] ~= b[2] then return a[2] > b[2] end
    if a[3] ~= b[3] then return a[3] < b[3] end
    return a[1] < b[1]
  end)
  for i, entry in ipairs(found) do found[i] = entry[1] end
  return found
end

for i = 3, #ARGV, 2 do
  local id = ARGV[i]
  if not holds(worker, ARGV[i + 1], id) then
    lost[#lost + 1] = id
  else
    call('ZADD', q .. 'lease', t + lease, id)
    if call('HGET', job(id), 'cancel_requested') == '1' then canceled[#canceled + 1] = id else held[#held + 1] = id end
  end
end
return { lost, canceled, pausable() }
