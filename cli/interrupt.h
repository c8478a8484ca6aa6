/* Ctrl-C: the first asks the work to stop, the second ends the program. */
#ifndef CLI_INTERRUPT_H
#define CLI_INTERRUPT_H

/* For SIGINT and SIGTERM, unless the program was started with them ignored. */
void interrupt_install(void);
/* The signal that came, or 0. */
int interrupt_signal(void);

#endif
