/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_TESTS_WIRE_SAMPLE_H
#define US_TESTS_WIRE_SAMPLE_H

#include "unit.h"
#include "wire/pages.h"

/* Messages for the tests of the codecs, and what is done with each. */

enum { SAMPLE_BUF_BYTES = WIRE_HEADER_BYTES + WIRE_PAYLOAD_MAX, SAMPLE_TYPES = 18 };

extern const uint16_t sample_types[SAMPLE_TYPES]; /* all that there are */
extern uint8_t *sample_buf;                       /* SAMPLE_BUF_BYTES: what was encoded last */
extern uint8_t sample_bulk[PAGE_BODY_BYTES];      /* arbitrary bytes */

/* Group fixtures: the buffers above. */
int sample_setup(void **state);
int sample_teardown(void **state);

/* A small message of the type, with every field set; what the golden bytes hold. */
struct wire_msg sample(uint16_t type);
enum wire_channel sample_channel(uint16_t type);
void count_up(uint8_t *bytes, size_t n, uint8_t from);

/* Into sample_buf; returns the length. Fails the test when it is refused. */
size_t encode(const struct wire_msg *m);

/* As a reader of a connection would: 0, or what the decoders say; -EMSGSIZE when the header claims
 * another length than n. */
int decode(const uint8_t *raw, size_t n, enum wire_channel channel, struct wire_msg *ret_msg);
/* The n bytes of sample_buf, in memory of that very length, so that ASan sees each byte too far. */
int decode_copy(size_t n, enum wire_channel channel);

/* Sets length and checksum to fit, as a malicious peer would. */
void reseal(uint8_t *raw, size_t n);

void assert_same(const struct wire_msg *a, const struct wire_msg *b);
/* Encodes, decodes, compares; what came out encodes to the same bytes. */
void assert_round_trip(const struct wire_msg *m);
/* The encoder does not take it. */
void assert_not_encoded(const struct wire_msg *m);

#endif
