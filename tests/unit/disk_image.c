/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <linux/loop.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "disk/image.h"
#include "unit.h"

enum { DISK_BYTES = 1 << 20 };

static char folder[] = "/tmp/disk_image.XXXXXX";
static char path[64];

static int make_folder(void **state)
{
    if (!mkdtemp(folder))
        return -1;
    (void)snprintf(path, sizeof(path), "%s/disk.raw", folder);
    return 0;
}

static int remove_folder(void **state)
{
    return rmdir(folder);
}

static int remove_file(void **state)
{
    (void)unlink(path);
    return 0;
}

static struct image make_image(void)
{
    const struct image_open how = {.path = path, .size_bytes = DISK_BYTES, .create = true};
    struct image image;
    bool created;

    assert_int_equal(image_open(&how, &image, &created, NULL), 0);
    return image;
}

static void refused(const struct image_open *how, int r, const char *text)
{
    struct image image;
    struct err err;
    bool created;

    assert_int_equal(image_open(how, &image, &created, &err), r);
    if (!strstr(err.text, text) || (strlen(how->path) < 256 && !strstr(err.text, how->path)))
        fail_msg("\"%s\" is not in \"%s\"", text, err.text);
}

static uint64_t space_used(void)
{
    struct stat st;

    assert_int_equal(stat(path, &st), 0);
    return (uint64_t)st.st_blocks * 512;
}

static void test_creates_sparse(void **state)
{
    const struct image_open how = {.path = path, .size_bytes = DISK_BYTES, .create = true};
    struct image image;
    bool created;
    uint64_t start, end;

    assert_int_equal(image_open(&how, &image, &created, NULL), 0);
    assert_true(created);
    assert_int_equal(image.size_bytes, DISK_BYTES);
    assert_int_equal(space_used(), 0);
    assert_int_equal(image_next_data(&image, 0, &start, &end), 0);
    image_close(&image);

    assert_int_equal(image_open(&how, &image, &created, NULL), 0);
    assert_false(created);
    image_close(&image);

    /* A creation that was interrupted before the file had its size. */
    assert_int_equal(truncate(path, 0), 0);
    assert_int_equal(image_open(&how, &image, &created, NULL), 0);
    assert_true(created);
    image_close(&image);
}

static void test_refuses_what_is_wrong(void **state)
{
    struct image image = make_image();
    char long_path[300];

    image_close(&image);
    refused(&(struct image_open){.path = path, .size_bytes = DISK_BYTES / 2}, -EINVAL,
            "has 1048576 bytes and should have 524288");
    assert_int_equal(truncate(path, 1000), 0);
    refused(&(struct image_open){.path = path}, -EINVAL, "no multiple of 512");
    assert_int_equal(truncate(path, 0), 0);
    refused(&(struct image_open){.path = path}, -EINVAL, "0 bytes");
    assert_int_equal(unlink(path), 0);
    refused(&(struct image_open){.path = path}, -ENOENT, "No such file");
    refused(&(struct image_open){.path = folder, .read_only = true}, -EINVAL, "neither a file nor");
    memset(long_path, 'x', sizeof(long_path));
    long_path[sizeof(long_path) - 1] = 0;
    refused(&(struct image_open){.path = long_path}, -ENAMETOOLONG, "too long");
}

static void test_one_process_at_a_time(void **state)
{
    struct image image = make_image(), second;
    const struct image_open reading = {.path = path, .read_only = true};
    bool created;

    refused(&(struct image_open){.path = path}, -EBUSY, "another process");
    refused(&reading, -EBUSY, "another process");
    image_close(&image);

    assert_int_equal(image_open(&reading, &image, &created, NULL), 0);
    assert_int_equal(image_open(&reading, &second, &created, NULL), 0);
    refused(&(struct image_open){.path = path}, -EBUSY, "another process");
    image_close(&second);
    image_close(&image);
}

static void write_and_read(const struct image *image)
{
    uint8_t wrote[10000], found[10000];

    for (size_t i = 0; i < sizeof(wrote); i++)
        wrote[i] = (uint8_t)(i * 7 + 1);
    assert_int_equal(image_write(image, wrote, sizeof(wrote), 777), 0);
    assert_int_equal(image_sync(image), 0);
    assert_int_equal(image_read(image, found, sizeof(found), 777), 0);
    assert_memory_equal(wrote, found, sizeof(wrote));
    memset(found, 0, sizeof(found));
    if (image_read_cached(image, found, sizeof(found), 777) == 0)
        assert_memory_equal(wrote, found, sizeof(wrote));
}

static void test_reads_and_writes(void **state)
{
    struct image image = make_image();
    uint8_t found[10000];

    write_and_read(&image);
    /* Somebody has cut the file off. */
    assert_int_equal(truncate(path, 4096), 0);
    assert_int_equal(image_read(&image, found, sizeof(found), 777), -EIO);
    assert_int_equal(image_read_cached(&image, found, sizeof(found), 777), -EAGAIN);
    image_close(&image);
}

static void test_read_only(void **state)
{
    struct image image = make_image();
    bool created;
    char byte = 0;

    image_close(&image);
    assert_int_equal(
        image_open(&(struct image_open){.path = path, .read_only = true}, &image, &created, NULL),
        0);
    assert_int_equal(image_write(&image, &byte, 1, 0), -EROFS);
    assert_int_equal(image_zero(&image, 0, 512, true), -EROFS);
    assert_int_equal(image_read(&image, &byte, 1, 0), 0);
    image_close(&image);
}

/* Writes the whole image, then zeroes a range, which leaves or gives back its space. */
static void zero_and_punch(const struct image *image, uint64_t offset, uint64_t n)
{
    static uint8_t ones[DISK_BYTES], found[DISK_BYTES], expected[DISK_BYTES];

    memset(ones, 1, sizeof(ones));
    for (int punch = 0; punch < 2; punch++) {
        assert_int_equal(image_write(image, ones, sizeof(ones), 0), 0);
        memcpy(expected, ones, sizeof(ones));
        memset(expected + offset, 0, n);
        assert_int_equal(image_zero(image, offset, n, punch), 0);
        assert_int_equal(image_zero(image, 0, 0, punch), 0);
        assert_int_equal(image_sync(image), 0);
        assert_int_equal(image_read(image, found, sizeof(found), 0), 0);
        assert_memory_equal(found, expected, sizeof(found));
        if (!punch || image_can_punch(image))
            assert_int_equal(space_used() < DISK_BYTES / 2, punch);
    }
}

static void test_zero_and_punch(void **state)
{
    struct image image = make_image();

    zero_and_punch(&image, 5000, 700000);
    image_close(&image);
}

static void test_finds_data(void **state)
{
    struct image image = make_image();
    uint64_t start, end, at = 0, found = 0;
    uint8_t ones[8192];

    memset(ones, 1, sizeof(ones));
    assert_int_equal(image_write(&image, ones, sizeof(ones), 65536), 0);
    assert_int_equal(image_write(&image, ones, sizeof(ones), DISK_BYTES - 8192), 0);
    while (image_next_data(&image, at, &start, &end) == 1) {
        assert_true(start >= at && end > start && end <= DISK_BYTES);
        found += end - start;
        at = end;
    }
    assert_int_equal(found, 16384);
    assert_int_equal(image_next_data(&image, 65536 + 512, &start, &end), 1);
    assert_int_equal(start, 65536 + 512);
    assert_int_equal(end, 65536 + 8192);
    assert_int_equal(image_next_data(&image, DISK_BYTES, &start, &end), 0);
    image_close(&image);
}

/* Makes the file at `path` a block device, for as long as somebody has it open. Returns it open, or
 * -1 where that cannot be had. */
static int make_loop(char *ret_path, size_t n)
{
    int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC), fd = -1;
    struct image image = make_image();
    struct loop_config config = {.fd = (uint32_t)image.fd, .info.lo_flags = LO_FLAGS_AUTOCLEAR};

    while (control >= 0) {
        int free_one = ioctl(control, LOOP_CTL_GET_FREE);

        (void)snprintf(ret_path, n, "/dev/loop%d", free_one);
        fd = free_one < 0 ? -1 : open(ret_path, O_RDWR | O_CLOEXEC);
        if (fd < 0 || ioctl(fd, LOOP_CONFIGURE, &config) == 0)
            break;
        close(fd);
        fd = -1;
        if (errno != EBUSY) /* else another process was quicker */
            break;
    }
    if (control >= 0)
        close(control);
    image_close(&image);
    return fd;
}

static void check_block_device(const char *device)
{
    const struct image_open how = {.path = device, .size_bytes = DISK_BYTES, .create = true};
    const struct image_open reading = {.path = device, .read_only = true};
    struct image image;
    uint64_t start, end;
    bool created;

    refused(&(struct image_open){.path = device, .size_bytes = 4096}, -EINVAL,
            "has 1048576 bytes and should have 4096");
    assert_int_equal(image_open(&how, &image, &created, NULL), 0);
    assert_false(created);
    assert_true(image.is_block);
    assert_int_equal(image.size_bytes, DISK_BYTES);
    refused(&how, -EBUSY, "another process");
    refused(&reading, -EBUSY, "another process");
    write_and_read(&image);
    zero_and_punch(&image, 8192, 700416);
    assert_true(image_can_punch(&image));
    assert_int_equal(image_zero(&image, 1001, 9, true), 0); /* the device zeroes sectors only */
    assert_int_equal(image_next_data(&image, 5000, &start, &end), 1);
    assert_int_equal(start, 5000);
    assert_int_equal(end, DISK_BYTES);
    image_close(&image);
    assert_int_equal(image_open(&reading, &image, &created, NULL), 0);
    assert_int_equal(image_zero(&image, 0, 512, true), -EROFS);
    image_close(&image);
}

static void test_block_device(void **state)
{
    char device[32];
    int fd = make_loop(device, sizeof(device));

    if (fd < 0) {
        print_message("# no loop device: %s\n", strerror(errno));
        skip();
    }
    check_block_device(device);
    close(fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_creates_sparse, remove_file),
        cmocka_unit_test_teardown(test_refuses_what_is_wrong, remove_file),
        cmocka_unit_test_teardown(test_one_process_at_a_time, remove_file),
        cmocka_unit_test_teardown(test_reads_and_writes, remove_file),
        cmocka_unit_test_teardown(test_read_only, remove_file),
        cmocka_unit_test_teardown(test_zero_and_punch, remove_file),
        cmocka_unit_test_teardown(test_finds_data, remove_file),
        cmocka_unit_test_teardown(test_block_device, remove_file),
    };

    return cmocka_run_group_tests_name("disk_image", tests, make_folder, remove_folder);
}
