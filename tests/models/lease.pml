/* A host's lease: what the master starts elsewhere no longer runs on the host, whoever is stopped or lost.

   What is modelled (docs/reference/protocol.md, RENEW and GRANT; docs/decisions/0022): one registration, one
   host, and "elsewhere". The agent asks for the lease with a stamp of its own clock; a grant repeats the stamp and
   counts from it, the newest one alone; the kernel ends what runs at the deadline, LATE ticks after it at the
   latest. The master takes the host for lost when MARGIN is over beyond the longest lease that the host may count
   on, which is durable, and so ends its session. It may be killed, or end on purpose and grant HANDOVER before;
   the next one counts from its own beginning. Messages are lost, and arrive as late as they like; agent and warden
   may be stopped for any time (a process that can go on need not). LATE stands for the drift of clocks as well.

   Must hold: never a process on the host while one runs elsewhere. Each -D takes one guard away, and must be found.

     FROM_RECEIPT     the lease counts from when the grant is read
     NO_MARGIN        the master waits for the lease alone
     NO_FUSE          it is the warden that ends what runs, when it comes to it
     NO_WAIT          a new master goes by grants of before its time, of which it knows none
     LEASE_FORGOTTEN  a new master goes by its own lease, not by the longest one that was granted
     UNWRITTEN        a parting grant is not written down before it is given
     SHORT_AT_ONCE    a shorter lease is written down when it is granted, not when it is in force
     START_ANYHOW     a START is carried out without a lease that is in force
     SESSION_GOES_ON  the session of a lost host is good for its orders                                         */

#define LEASE 2
#define HANDOVER 4
#define LATE 1
#ifdef NO_MARGIN
#define MARGIN 0
#else
#define MARGIN 1
#endif
#define TOKENS 2
#define SESSIONS 2
#define MASTERS 2
#define END 9

byte now = 1;                                   /* true time; a stamp is never 0 */

/* The host's: what runs, the session, the stamp that is in force, the deadline. */
byte runs, session, force, fuse;

/* The master's: durable are the token, whether it may run here or elsewhere, the longest lease. */
byte token, longest = LEASE;
bool here, elsewhere;
/* And not: the session, when it granted last, the last stamp, the first one that was granted in the session. */
byte held, counted = 1, last, first;
byte masters = 1;

/* One message of each kind is under way; it may be read at any time, and the next one takes its place. */
chan ask = [1] of { byte, byte, byte };         /* stamp, stamp in force, session */
chan grant = [1] of { byte, byte, byte };       /* stamp, length, session */
chan inventory = [1] of { byte, byte };         /* what runs, session */
chan start = [1] of { byte, byte };             /* token, session */

#ifdef NO_FUSE
#define DUE false
#else
#define DUE (runs != 0 && now >= fuse + LATE)
#endif

inline give(length) {
  if :: full(grant) -> grant?_, _, _ :: empty(grant) -> skip fi;
  grant!last, length, held
}

inline begin() {
  masters++;
  held = 0; last = 0; first = 0;
#ifdef NO_WAIT
  counted = 0;
#else
  counted = now;
#endif
#ifdef LEASE_FORGOTTEN
  longest = LEASE
#else
  skip
#endif
}

active proctype master() {
  byte a, b, c;
  do
  :: atomic { !here && !elsewhere && token < TOKENS ->
       token++; elsewhere = true; assert(runs == 0) }
  :: atomic { here && now > counted + longest + MARGIN ->               /* the host is lost */
#ifndef SESSION_GOES_ON
       held = 0;
#endif
       here = false }
  :: atomic { ask?a, b, c ->
       if
       :: c != held || held == 0 -> skip
       :: else ->
            if :: first == 0 -> first = a :: else -> skip fi;
#ifdef SHORT_AT_ONCE
            longest = LEASE;
#else
            if :: b >= first -> longest = LEASE :: else -> skip fi;
#endif
            last = a; counted = now; give(LEASE)
       fi; a = 0; b = 0; c = 0 }
  :: atomic { !here && !elsewhere && token < TOKENS && held > 0 ->
       if :: full(start) -> start?_, _ :: empty(start) -> skip fi;
       token++; here = true; start!token, held }
  :: atomic { inventory?a, c ->
       held = c; last = 0; first = 0;
       if :: here && a != token -> here = false :: else -> skip fi;
       a = 0; c = 0 }
  :: atomic { elsewhere -> elsewhere = false }                           /* it ends there */
  :: atomic { masters < MASTERS ->                                       /* it ends on purpose */
       if
       :: held > 0 && last > 0 ->
#ifndef UNWRITTEN
            longest = HANDOVER;
#endif
            give(HANDOVER)
       :: else -> skip
       fi;
       begin() }
  :: atomic { masters < MASTERS -> begin() }                             /* or is killed */
  od
}

active proctype host() {
  byte a, b, c;
  do
  :: atomic { start?a, c ->
       if
#ifdef START_ANYHOW
       :: c == session && runs == 0 -> runs = a; assert(!elsewhere)
#else
       :: c == session && runs == 0 && force > 0 && now < fuse -> runs = a; assert(!elsewhere)
#endif
       :: else -> skip
       fi; a = 0; c = 0 }
  :: atomic { grant?a, b, c ->
       if
       :: c == session && a >= force ->
            force = a;
#ifdef FROM_RECEIPT
            fuse = now + b
#else
            fuse = a + b
#endif
       :: else -> skip
       fi; a = 0; b = 0; c = 0 }
  :: atomic { session > 0 ->
       if :: full(ask) -> ask?_, _, _ :: empty(ask) -> skip fi;
       ask!now, force, session }
  :: atomic { session < SESSIONS ->
       if :: full(inventory) -> inventory?_, _ :: empty(inventory) -> skip fi;
       session++; force = 0; inventory!runs, session }
  :: atomic { runs != 0 && now >= fuse -> runs = 0 }    /* killed, between the deadline and LATE */
  :: atomic { runs != 0 -> runs = 0 }                   /* or ends by itself, and nobody sees it */
  od
}

active proctype clock() {
  do
  :: atomic { now < END && !DUE -> now++ }
  od
}
