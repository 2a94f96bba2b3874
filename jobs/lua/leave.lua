#!lua flags=allow-oom
-- leave <worker> -> 1. The worker ends in good order and is no longer shown.
call('ZREM', q .. 'beats', ARGV[1])
call('HDEL', q .. 'workers', ARGV[1])
return 1
