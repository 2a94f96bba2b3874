#!lua flags=no-writes
-- forecast <client> <queue> <service_class> <priority> <steps> <size> <deadline_s> <reuse_key>
--          -> {predicted seconds, position, seconds until it would be done}. Nothing is written.
local client, queue, class, priority, steps, size, deadline_s, reuse_key = unpack(ARGV)
local score = next_place() - tonumber(priority) * PRIORITY_US
local predicted = predict(queue, size, steps)
local first, ready = leader(client, reuse_key)
local position, eta = 0, 0
if first and not ready then
  predicted, position, eta = remaining(first, { class = class, score = score, timed = deadline_s ~= '' })
elseif not ready then
  position, eta = estimate(queue, class, client, score, predicted, deadline_s ~= '')
end
return { stamp(predicted), position, stamp(eta) }
