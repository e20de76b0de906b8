/* calls.h: seeing, counting and refusing the system calls that the engine makes by syscall(2), for want of a name in
 * older C libraries. */
#ifndef UM_CALLS_H
#define UM_CALLS_H

typedef long calls_hook(long number, const long arguments[6]);

/* Called in place of syscall(2); NULL: none. Set before there are threads. */
extern calls_hook *calls_instead;

long calls_real(long number, const long arguments[6]);

#endif
