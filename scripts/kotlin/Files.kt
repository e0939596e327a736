package tffperfedavg

import java.io.File
import java.io.FileOutputStream
import java.security.MessageDigest

/** Files that appear whole or not at all, with their SHA-256 behind them. */
object Files {
    fun hash(content: ByteArray): ByteArray = MessageDigest.getInstance("SHA-256").digest(content)

    fun name(content: ByteArray): String =
        hash(content).take(8).joinToString("") { "%02x".format(it) }

    fun sealed(content: ByteArray): ByteArray = content + hash(content)

    fun unsealed(from: File): ByteArray {
        val content = from.readBytes()
        require(content.size >= DIGEST) { "$from was cut short" }
        val body = content.copyOf(content.size - DIGEST)
        require(hash(body).contentEquals(content.copyOfRange(body.size, content.size))) {
            "$from is damaged or was cut short"
        }
        return body
    }

    /** Writes a file beside `to`, has it on the disk, and renames it. */
    fun write(to: File, content: ByteArray) {
        val part = File(to.path + ".part")
        FileOutputStream(part).use {
            it.write(content)
            it.fd.sync()
        }
        check(part.renameTo(to)) { "$to cannot be written; what was there is as it was" }
    }

    private const val DIGEST = 32
}
