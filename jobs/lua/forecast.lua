#!lua flags=no-writes
-- forecast <client> <queue> <service_class> <priority> <steps> <size> <deadline_s>
--          -> {predicted seconds, position, seconds until it would be done}. Nothing is written.
local client, queue, class, priority, steps, size, deadline_s = unpack(ARGV)
local score = next_place() - tonumber(priority) * PRIORITY_US
local predicted = predict(queue, size, steps)
local position, eta = estimate(queue, class, client, score, predicted, deadline_s ~= '')
return { stamp(predicted), position, stamp(eta) }
