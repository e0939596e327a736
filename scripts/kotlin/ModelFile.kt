package tffperfedavg

import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.security.MessageDigest
import org.json.JSONArray
import org.json.JSONObject

/** An exported file that is whole: its checksum is right, and it has a card. */
class ModelFile(val file: File) {
    val content: ByteArray = file.readBytes()
    private val bytes = ByteBuffer.wrap(content).order(ByteOrder.LITTLE_ENDIAN)
    /** What the file says of itself; docs/on_device.md tells the fields. */
    val cardText: String
    val card: JSONObject

    init {
        require(content.size > SEAL_END && ascii(4, 4) == "TFL3") { "$file is no TensorFlow Lite file" }
        require(ascii(8, 16) == MARKER) { "$file has no checksum: export it again" }
        val zeroed = content.copyOf()
        zeroed.fill(0, DIGEST_AT, SEAL_END)
        val digest = MessageDigest.getInstance("SHA-256").digest(zeroed)
        require(digest.contentEquals(content.copyOfRange(DIGEST_AT, SEAL_END))) {
            "$file is damaged or was cut short"
        }
        cardText = String(findCard(), Charsets.UTF_8)
        card = JSONObject(cardText)
    }

    val modelId: String get() = card.getString("model_id")
    val batchSize: Int get() = card.getInt("batch_size")
    /** Rows that `infer` takes at once. */
    val inferBatchSize: Int get() = card.getInt("infer_batch_size")
    val classes: Int get() = card.getInt("num_classes")
    val mostGuardedSteps: Int get() = card.getInt("max_guarded_steps")
    val learningRate: Float get() = card.getDouble("inner_learning_rate").toFloat()
    val version: Int get() = card.getInt("version")
    val family: String get() = card.getString("family")
    /** Numbers in the features of one row. */
    val rowLength: Int get() = product(card.getJSONArray("input_shape"))
    /** Numbers in each of the personal weights. */
    val weightSizes: List<Int>
        get() {
            val shapes = card.getJSONArray("weight_shapes")
            return (0 until shapes.length()).map { product(shapes.getJSONArray(it)) }
        }

    private fun product(shape: JSONArray) = (0 until shape.length()).fold(1) { a, i -> a * shape.getInt(i) }

    private fun ascii(start: Int, count: Int) = String(content, start, count, Charsets.US_ASCII)

    // Of the flatbuffer's schema: fields 4 (buffers) and 6 (metadata) of the model, 0 (name)
    // and 1 (buffer) of an entry, 0 (data) of a buffer.
    private fun findCard(): ByteArray {
        val model = target(0)
        val buffers = tables(model, 4)
        for (entry in tables(model, 6)) {
            if (String(vector(entry, 0), Charsets.UTF_8) == CARD) {
                return vector(buffers[bytes.getInt(field(entry, 1))], 0)
            }
        }
        throw IllegalArgumentException("$file has no card: export it with tff_perfedavg")
    }

    private fun target(place: Int) = place + bytes.getInt(place)

    private fun field(table: Int, number: Int): Int {
        val vtable = table - bytes.getInt(table)
        val place = 4 + 2 * number
        val offset = if (place < bytes.getShort(vtable)) bytes.getShort(vtable + place).toInt() else 0
        require(offset != 0) { "$file has no field $number" }
        return table + (offset and 0xffff)
    }

    private fun tables(table: Int, number: Int): List<Int> {
        val start = target(field(table, number))
        return (0 until bytes.getInt(start)).map { target(start + 4 + 4 * it) }
    }

    private fun vector(table: Int, number: Int): ByteArray {
        val start = target(field(table, number))
        return content.copyOfRange(start + 4, start + 4 + bytes.getInt(start))
    }

    private companion object {
        const val MARKER = "tff_perfedavg256"
        const val CARD = "TFF_PERFEDAVG_CARD"
        const val DIGEST_AT = 24
        const val SEAL_END = 56
    }
}
