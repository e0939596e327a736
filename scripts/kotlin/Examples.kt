package tffperfedavg

import java.io.ByteArrayOutputStream
import java.io.DataInputStream
import java.io.DataOutputStream
import java.io.File

/** A row that a user has shown. `isCheck` rows are never learned from. */
class Example(val x: FloatArray, val label: Int, val isCheck: Boolean)

/**
 * What a user has shown, the newest of it, bounded and balanced by class.
 *
 * Of each class the second example, the fifth and so on are held back to check on, from
 * the time they come. Where there is no more room, the oldest of the class that has most
 * goes, of its side that has more than its share.
 */
class Examples(private val capacity: Int, private val rowLength: Int, private val classes: Int) {
    private val rows = ArrayList<Example>()
    private val seen = HashMap<Int, Int>()

    init {
        require(capacity >= 2) { "capacity is $capacity; it must be at least 2" }
    }

    val size: Int get() = rows.size
    fun toLearn(): List<Example> = inTurns(rows.filter { !it.isCheck })
    fun toCheck(): List<Example> = inTurns(rows.filter { it.isCheck })

    fun add(x: FloatArray, label: Int) {
        require(x.size == rowLength) { "x has ${x.size} numbers; a row has $rowLength" }
        require(x.all { it == it && Math.abs(it) != Float.POSITIVE_INFINITY }) {
            "x has a number that is not finite"
        }
        require(label in 0 until classes) { "label $label; labels are 0 to ${classes - 1}" }
        val number = seen[label] ?: 0
        seen[label] = number + 1
        rows.add(Example(x.copyOf(), label, number % HELD_BACK == 1))
        if (rows.size > capacity) drop()
    }

    private fun drop() {
        val ofClasses = rows.groupBy { it.label }.toSortedMap().values
        val most = ofClasses.sortedByDescending { it.size }.first()
        val (check, learn) = most.partition { it.isCheck }
        rows.remove(if (check.size * (HELD_BACK - 1) > learn.size) check[0] else learn[0])
    }

    /** One row of each class, then a second of each, and so on. */
    private fun inTurns(some: List<Example>): List<Example> {
        val turns = HashMap<Int, Int>()
        return some.map { row ->
            val turn = turns[row.label] ?: 0
            turns[row.label] = turn + 1
            Pair(turn, row)
        }.sortedBy { it.first }.map { it.second }
    }

    /** Writes the examples, whole or not at all. */
    fun save(to: File) {
        val bytes = ByteArrayOutputStream()
        val out = DataOutputStream(bytes)
        out.writeInt(FORMAT)
        out.writeInt(rowLength)
        out.writeInt(seen.size)
        seen.forEach { (label, count) -> out.writeInt(label); out.writeInt(count) }
        out.writeInt(rows.size)
        for (row in rows) {
            out.writeInt(row.label)
            out.writeBoolean(row.isCheck)
            row.x.forEach { out.writeFloat(it) }
        }
        Files.write(to, Files.sealed(bytes.toByteArray()))
    }

    fun load(from: File) {
        val input = DataInputStream(Files.unsealed(from).inputStream())
        require(input.readInt() == FORMAT) { "$from has no examples" }
        val length = input.readInt()
        require(length == rowLength) { "$from has rows of $length numbers, not $rowLength" }
        rows.clear()
        seen.clear()
        repeat(input.readInt()) { seen[input.readInt()] = input.readInt() }
        repeat(input.readInt()) {
            val label = input.readInt()
            val isCheck = input.readBoolean()
            rows.add(Example(FloatArray(rowLength) { input.readFloat() }, label, isCheck))
        }
        while (rows.size > capacity) drop()
    }

    fun clear() {
        rows.clear()
        seen.clear()
    }

    private companion object {
        const val HELD_BACK = 3
        const val FORMAT = 0x50464531
    }
}
