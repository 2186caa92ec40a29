/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_BASE_ERR_H
#define US_BASE_ERR_H

/* An error text for people. Functions whose failure a person will read take a `struct err *` as
 * their last parameter, beside the negative errno that they return; callers prefix it with what
 * they were doing, so that the text reads from the outside in: "web: attach: qmp.sock: connection
 * refused". A NULL err is allowed everywhere: nobody reads it. */
struct err {
    char text[512];
};

#define US_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))
#define US_MUST_CHECK        __attribute__((warn_unused_result))

/* Sets the text and returns `code` (a negative errno), so that `return err_set(e, -EINVAL, ...)`
 * reports and fails in one line. Overlong texts are cut. */
int err_set(struct err *e, int code, const char *fmt, ...) US_PRINTF(3, 4);

/* As err_set(), with ": strerror(-code)" appended. */
int err_sys(struct err *e, int code, const char *fmt, ...) US_PRINTF(3, 4);

/* Puts "FORMATTED: " before the text that is there. */
void err_prefix(struct err *e, const char *fmt, ...) US_PRINTF(2, 3);

#endif
