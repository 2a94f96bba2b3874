#!lua flags=no-writes
-- batch_look <batch> -> {record, jobs that run, steps_done of those, seconds until all will be done, whether it is being filled};
-- nil for an unknown one
local id = ARGV[1]
local key = q .. 'b:' .. id
local record = call('HGETALL', key)
if #record == 0 then return false end
local f = call('HMGET', key, 'count', 'left', 'succeeded', 'failed', 'canceled', 'work', 'client')
local running, steps, eta = 0, 0, 0
for _, held in ipairs(call('ZRANGE', q .. 'lease', 0, -1)) do
  local one = call('HMGET', job(held), 'batch', 'steps_done')
  if one[1] == id then
    running, steps = running + 1, steps + tonumber(one[2])
    local _, _, left = remaining(held)
    eta = math.max(eta, left)
  end
end
local open = f[1] - f[2] - f[3] - f[4] - f[5]
if open > running then
  for i = 1, #record, 2 do
    local class, queue = string.match(record[i], '^lane:(%l+):(.+)$')
    if class then
      local _, left = estimate(queue, class, f[7], tonumber(record[i + 1]), f[6] / 1e6 / open, false)
      eta = math.max(eta, left)
    end
  end
end
local held_until = tonumber(call('ZSCORE', q .. 'filling', id) or 0)
return { record, running, steps, string.format('%.3f', eta), held_until > now() and 1 or 0 }
