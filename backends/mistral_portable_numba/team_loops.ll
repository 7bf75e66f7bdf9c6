; LLVM IR of the loops that the threads of a team run (see team.py, which compiles this file and gives addresses to
; `acquire`, `release` and `yield`).
;
; lead: the calling thread starts the workers, does its share, and waits for them. follow: a worker waits for a start,
; does its share, says that it is done, and begins again; a null entry ends it.

; entry (null: end), threads, job: `_Shared` in team.py
%shared = type { ptr, i64, i64 }

declare i32 @acquire(ptr, i32)
declare void @release(ptr)
declare i32 @yield()

; Take a lock. Sleeping and waking up takes 5 to 100 us, so a waiting thread first tries 1000 times, for about 300 us. It
; yields the core between tries, so that more threads than cores do not delay each other.
define internal void @wait(ptr %lock) {
  br label %try
try:
  %tries = phi i64 [ 0, %0 ], [ %more, %later ]
  %got = call i32 @acquire(ptr %lock, i32 0)
  %done = icmp ne i32 %got, 0
  br i1 %done, label %end, label %later
later:
  call i32 @yield()
  %more = add i64 %tries, 1
  %again = icmp ult i64 %more, 1000
  br i1 %again, label %try, label %sleep
sleep:
  call i32 @acquire(ptr %lock, i32 1)
  br label %end
end:
  ret void
}

; Call `do` on each of `count` locks.
define internal void @each(ptr %locks, i64 %count, ptr %do) {
  br label %next
next:
  %index = phi i64 [ 0, %0 ], [ %after, %one ]
  %more = icmp ult i64 %index, %count
  br i1 %more, label %one, label %end
one:
  %at = getelementptr ptr, ptr %locks, i64 %index
  %lock = load ptr, ptr %at
  call void %do(ptr %lock)
  %after = add i64 %index, 1
  br label %next
end:
  ret void
}

; Call the entry on one member of the team.
define internal void @work(ptr %shared, i64 %member) {
  %entry = load ptr, ptr %shared
  %at_threads = getelementptr %shared, ptr %shared, i32 0, i32 1
  %threads = load i64, ptr %at_threads
  %at_job = getelementptr %shared, ptr %shared, i32 0, i32 2
  %job = load i64, ptr %at_job
  call void %entry(i64 %job, i64 %member, i64 %threads)
  ret void
}

define void @lead(ptr %shared, ptr %starts, ptr %finishes, i64 %workers) {
  call void @each(ptr %starts, i64 %workers, ptr @release)
  call void @work(ptr %shared, i64 0)
  call void @each(ptr %finishes, i64 %workers, ptr @wait)
  ret void
}

define void @follow(ptr %shared, ptr %start, ptr %finish, i64 %member) {
  br label %next
next:
  call void @wait(ptr %start)
  %entry = load ptr, ptr %shared
  %ended = icmp eq ptr %entry, null
  br i1 %ended, label %end, label %run
run:
  call void @work(ptr %shared, i64 %member)
  call void @release(ptr %finish)
  br label %next
end:
  ret void
}
