/* START and STOP of one registration, over two hosts and a link that loses and delivers late.

   What is modelled (docs/reference/protocol.md, Agents): the master draws a token for each start; a host
   remembers the highest token that it has seen for the slot, started or stopped; STOP of what does not run
   is remembered and answered; a session begins with an inventory, and what is not in it does not exist. An
   order that was under way when a session ended may still arrive in a later one.

   Must hold: never two processes at the same time. Each -D takes one guard away, and must be found.

     NO_TOMBSTONE     STOP of a token that does not run leaves nothing behind
     STOP_TOO_EARLY   STOP is answered when the process has been asked to end, not when it is gone
     OLD_ORDERS       an order of an earlier session is carried out after an inventory without it
     ANY_INVENTORY    an inventory of an earlier session counts                                           */

#define TOKENS 3
#define SESSIONS 3

mtype = { START, STOP, STARTED, EXITED, STOP_DONE, INVENTORY };

/* The master's: the newest token, where it may run (NOWHERE: it is proved that it does not), and the
   session that it holds with each host. */
#define NOWHERE 255
byte token, owner = NOWHERE;
byte held[2];

/* A host's: its process (0: none), the highest token seen, its session. */
byte runs[2], seen[2], session[2];

chan down[2] = [2] of { mtype, byte, byte };            /* kind, token, session */
chan up[2] = [2] of { mtype, byte, byte };

inline answer(kind, its) {
  if
  :: nfull(up[me]) -> up[me]!kind, its, session[me]
  :: full(up[me]) -> skip                               /* lost: the next inventory tells */
  fi
}

proctype host(byte me) {
  byte its, since;
  do
  :: atomic { down[me]??START, its, since ->               /* in whatever order they arrive */
       if
#ifdef OLD_ORDERS
       :: its > seen[me] && runs[me] == 0 ->
#else
       :: since == session[me] && its > seen[me] && runs[me] == 0 ->
#endif
            seen[me] = its; runs[me] = its; assert(runs[1 - me] == 0); answer(STARTED, its)
       :: else -> skip
       fi; its = 0; since = 0 }
  :: atomic { down[me]??STOP, its, since ->
       if
       :: since != session[me] -> skip
       :: since == session[me] && runs[me] == its ->       /* it ends when it likes, below */
#ifdef STOP_TOO_EARLY
            answer(STOP_DONE, its)
#else
            skip
#endif
       :: since == session[me] && runs[me] != its ->
#ifndef NO_TOMBSTONE
            if :: its > seen[me] -> seen[me] = its :: else -> skip fi;
#endif
            answer(STOP_DONE, its)
       fi; its = 0; since = 0 }
  :: atomic { runs[me] != 0 -> its = runs[me]; runs[me] = 0; answer(EXITED, its); its = 0 }
  :: atomic { nempty(down[me]) -> down[me]?_, _, _ }    /* lost */
  :: atomic { session[me] < SESSIONS && nfull(up[me]) ->
       session[me]++; up[me]!INVENTORY, runs[me], session[me] }
  od
}

inline order(kind, where) {
  if
  :: nfull(down[where]) -> down[where]!kind, token, held[where]
  :: full(down[where]) -> skip
  fi
}

inline draw(where) { token++; owner = where; order(START, where) }

inline told(from) {
  if
#ifdef ANY_INVENTORY
  :: true ->
#else
  :: since > held[from] ->
#endif
       held[from] = since;
       /* It never arrived, or has ended unseen: and no order of before will be carried out. */
       if :: owner == from && its != token -> owner = NOWHERE :: else -> skip fi
#ifndef ANY_INVENTORY
  :: else -> skip
#endif
  fi
}

inline gone(from) {
  if
  :: since == held[from] && owner == from && its == token -> owner = NOWHERE
  :: else -> skip
  fi
}

inline hear(from) {                                     /* in whatever order they arrive */
  if
  :: up[from]??INVENTORY, its, 1 -> since = 1; told(from)
  :: up[from]??INVENTORY, its, 2 -> since = 2; told(from)
  :: up[from]??INVENTORY, its, 3 -> since = 3; told(from)
  :: up[from]??EXITED, its, since -> gone(from)
  :: up[from]??STOP_DONE, its, since -> gone(from)
  :: up[from]??STARTED, its, since
  fi;
  its = 0; since = 0
}

proctype master() {
  byte its, since;
  do
  :: atomic { owner == NOWHERE && token < TOKENS && held[0] > 0 -> draw(0) }
  :: atomic { owner == NOWHERE && token < TOKENS && held[1] > 0 -> draw(1) }
  :: atomic { owner != NOWHERE && nfull(down[owner]) -> order(STOP, owner) }
  :: atomic { nempty(up[0]) -> hear(0) }
  :: atomic { nempty(up[1]) -> hear(1) }
  od
}

init { atomic { run host(0); run host(1); run master() } }
