/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_TESTS_HYP_OPTIONS_H
#define US_TESTS_HYP_OPTIONS_H

/* The command line of hyp-smoke: an option --NAME VALUE for each member. NULL: not given. */
struct hyp_options {
    const char *emulator, *kernel, *initrd, *append, *firmware, *cpu, *machine, *accel;
    unsigned int epochs, interval; /* between two epochs, in milliseconds */
    unsigned int memory;           /* MiB */
    unsigned int cpus, nics, disks;
    unsigned int pages, delay; /* of the guest of hyp-guest.h */
    unsigned int alternate;    /* every other checkpoint is a migration, to compare */
    unsigned int transitional; /* virtio devices have the interface of version 1.0, too */
};

/* Fills in the defaults; ends the program when something is wrong. The texts are borrowed. */
void hyp_options_parse(int argc, char **argv, struct hyp_options *ret_options);

#endif
