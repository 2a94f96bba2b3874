#!lua flags=allow-oom
-- announce <model> <card json> -> 1. Also when the server is full: else no worker could come for the jobs inside.
call('HSET', q .. 'cards', ARGV[1], ARGV[2])
return 1
