// SPDX-License-Identifier: GPL-2.0
// A double of the Raspberry Pi's firmware mailbox, /dev/vcio: it answers vcgencmd's commands with what user space last
// wrote to its parameters (/sys/module/vcio/parameters/), so that `power` lets the rails follow the load and a test can
// raise a throttle flag.
//
// A message is words of 32 bits: its size in bytes, 0, the tag, the room for the answer, 0, an error code, then the
// command's text, replaced by the answer's (raspberrypi/utils, vcgencmd.c).
#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/uaccess.h>

#define MBOX_PROPERTY _IOWR(100, 0, char*)
#define GET_GENCMD_RESULT 0x00030080
#define DONE 0x80000000
enum { TAG = 2, ROOM = 3, ERROR = 5, TEXT = 6, LEAST = TEXT * 4 + 4, MOST = 8192 };

static char pmic_read_adc[2048];
module_param_string(pmic_read_adc, pmic_read_adc, sizeof(pmic_read_adc), 0644);
static char get_throttled[64] = "throttled=0x0";
module_param_string(get_throttled, get_throttled, sizeof(get_throttled), 0644);
static char measure_temp[64] = "temp=45.0'C";
module_param_string(measure_temp, measure_temp, sizeof(measure_temp), 0644);

static const struct {
	const char* command;
	char* answer;
} answers[] = {
	{ "pmic_read_adc", pmic_read_adc },
	{ "get_throttled", get_throttled },
	{ "measure_temp", measure_temp },
};

static void answer(u32* message, size_t room)
{
	char* text = (char*)(message + TEXT);
	size_t i, length;

	message[1] = DONE;
	message[ERROR] = 0;
	text[room - 1] = '\0';
	for (i = 0; i < ARRAY_SIZE(answers); i++) {
		length = strlen(answers[i].command);
		if (strncmp(text, answers[i].command, length) || (text[length] != '\0' && text[length] != ' '))
			continue;
		kernel_param_lock(THIS_MODULE);  // so that no answer is half an old one
		strscpy(text, answers[i].answer, room);
		kernel_param_unlock(THIS_MODULE);
		return;
	}
	message[ERROR] = 1;
	strscpy(text, "error=1 error_msg=\"Command not registered\"", room);
}

static long vcio_ioctl(struct file* file, unsigned int request, unsigned long argument)
{
	u32 __user* from = (u32 __user*)argument;
	u32 size;
	u32* message;
	long result = 0;

	if (request != MBOX_PROPERTY)
		return -ENOTTY;
	if (get_user(size, from))
		return -EFAULT;
	if (size < LEAST || size > MOST)
		return -EINVAL;
	message = memdup_user(from, size);
	if (IS_ERR(message))
		return PTR_ERR(message);
	if (message[TAG] == GET_GENCMD_RESULT && message[ROOM] && message[ROOM] <= size - TEXT * 4) {
		answer(message, message[ROOM]);
		if (copy_to_user(from, message, size))
			result = -EFAULT;
	} else {
		result = -EINVAL;
	}
	kfree(message);
	return result;
}

static const struct file_operations operations = {
	.owner = THIS_MODULE,
	.unlocked_ioctl = vcio_ioctl,
	.compat_ioctl = vcio_ioctl,
};

static struct miscdevice vcio = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "vcio",
	.fops = &operations,
	.mode = 0660,
};

module_misc_device(vcio);
MODULE_DESCRIPTION("Double of the Raspberry Pi firmware mailbox");
MODULE_LICENSE("GPL");
