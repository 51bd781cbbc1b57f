/* The end of each incarnation is told exactly once, whatever is lost or killed on the way.

   What is modelled (docs/reference/protocol.md, Agents): a host keeps each end until a master acknowledges
   it, and lists it in every inventory until then; the master acknowledges what is committed, and no token's
   end has two rows; what an inventory lists neither as running nor as ended has ended unseen. The warden may
   die with its process, the agent may be killed (a new session), the master may be killed between any two
   steps, and the link loses what it likes.

   Must hold: never two ends of one token; what a host forgets is told; an end that a host knows is never told
   as one that nobody saw. Each -D takes one guard away, and must be found.

     TWICE            an end is committed without a look whether the token has one
     ACK_FIRST        it is acknowledged before it is committed
     FORGET_FIRST     the host forgets an end when it has said it
     LATE_SNAPSHOT    the running and the ended are listed at two moments                             */

#define TOKENS 3
#define SESSIONS 4

mtype = { START, EXITED, INVENTORY };

/* The master's: durable are the newest token and how many ends each has; its session is not. */
byte token, held;
byte told[TOKENS + 1];

/* The host's: what runs, the ends that it keeps (a bit each), its session; and, for the model only, which
   tokens have ended without anybody to see it. */
byte runs, kept, session;
bool unseen[TOKENS + 1];

chan down = [2] of { mtype, byte, byte };               /* kind, token, session */
chan acks = [2] of { byte, byte };
chan up = [2] of { mtype, byte, byte, byte };           /* kind, running or token, ends, session */

byte sessions;                                          /* begun so far */
bool ran[TOKENS + 1];

#define HAS(t) ((kept >> t) & 1)

inline say(t) {
  up!EXITED, t, 0, session;
#ifdef FORGET_FIRST
  kept = kept & ~(1 << t)
#else
  skip
#endif
}

inline commit() {
#ifdef TWICE
  told[its]++;
#else
  if :: told[its] == 0 -> told[its]++ :: else -> skip fi;
#endif
  assert(told[its] <= 1)
}

inline hear_end() {
#ifdef ACK_FIRST
  acks!its, since;
  if :: commit() :: held = 0 fi                         /* or killed before */
#else
  commit();
  acks!its, since
#endif
}

active proctype host() {
  byte its, since, listed;
  do
  :: atomic { down?START, its, since ->
       if :: since == session && runs == 0 -> runs = its; ran[its] = true :: else -> skip fi; its = 0; since = 0 }
  :: atomic { acks?its, since ->
       if
       :: since == session && HAS(its) -> assert(told[its] == 1); kept = kept & ~(1 << its)
       :: else -> skip
       fi; its = 0; since = 0 }
  :: atomic { runs != 0 -> kept = kept | (1 << runs); runs = 0 }
  :: atomic { runs != 0 -> unseen[runs] = true; runs = 0; session = 0 }         /* the warden died, too */
  :: atomic { session > 0 && HAS(1) && nfull(up) -> say(1) }
  :: atomic { session > 0 && HAS(2) && nfull(up) -> say(2) }
  :: atomic { session > 0 && HAS(3) && nfull(up) -> say(3) }
#ifdef LATE_SNAPSHOT
  :: atomic { sessions < SESSIONS -> listed = kept } ;
     if :: atomic { runs != 0 -> kept = kept | (1 << runs); runs = 0 } :: skip fi;
     atomic { nfull(up) -> sessions++; session = sessions; up!INVENTORY, runs, listed, session;
       listed = 0 }
#else
  :: atomic { sessions < SESSIONS && nfull(up) ->
       sessions++; session = sessions; up!INVENTORY, runs, kept, session }
#endif
  :: atomic { nempty(up) -> up?_, _, _, _ }                                     /* lost */
  :: atomic { nempty(down) -> down?_, _, _ }
  :: atomic { nempty(acks) -> acks?_, _ }
  od
}

active proctype master() {
  byte its, ends, since;
  do
  :: atomic { token < TOKENS && held > 0 && (token == 0 || told[token] > 0) && nfull(down) ->
       token++; down!START, token, held }
  :: atomic { up?EXITED, its, _, since ->
       if
       :: since != held || full(acks) -> skip
       :: since == held && nfull(acks) -> hear_end()
       fi; its = 0; since = 0 }
  :: atomic { up?INVENTORY, its, ends, since ->
       held = since;
       if
       :: token > 0 && told[token] == 0 && its != token && !((ends >> token) & 1) ->
            assert(!ran[token] || unseen[token]);
            told[token]++
       :: else -> skip
       fi; its = 0; ends = 0; since = 0 }
  :: atomic { held > 0 -> held = 0 }                                            /* killed */
  od
}
